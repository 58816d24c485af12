"""Networks that turn images into features: torch-fidelity's, and one whose weights come in a package.

A weights file is read without unpickling more than tensors. TorchScript archives (CLIP's weights are published as
such) hold programs, so they are opened only if their SHA-256 is that of the published file.
"""

import hashlib
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_clip import MODEL_METADATA as CLIP
from torch_fidelity.feature_extractor_clip import MODEL_URLS as CLIP_URLS
from torch_fidelity.feature_extractor_clip import FeatureExtractorCLIP, build_model
from torch_fidelity.feature_extractor_dinov2 import MODEL_METADATA as DINOV2
from torch_fidelity.feature_extractor_dinov2 import FeatureExtractorDinoV2
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from ddpm_train.evaluation.shards import fill_sharded
from ddpm_train.files import sha256_file
from ddpm_train.mistakes import Mistakes
from ddpm_train.preemption import StopRequest
from ddpm_train.ranks import on_main

# Images go through an extractor in batches of this size, whatever else is batched how: other batches round otherwise.
BATCH_IMAGES = 32
_DINOV2_CODE = "facebookresearch/dinov2"
_DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2/{0}/{0}_pretrain.pth"
_PATIENCE_SECONDS = 10
