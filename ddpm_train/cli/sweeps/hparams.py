"""The jobs of a sweep for TensorBoard's HParams tab: what sets each apart, how it ended, and its objective."""

import math
from collections.abc import Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from ddpm_train.cli.sweeps.jobs import Row, varied_keys
from ddpm_train.system.files import replace_folder

_STATUS = {
    "finished": api_pb2.STATUS_SUCCESS,
    "pruned": api_pb2.STATUS_SUCCESS,
    "running": api_pb2.STATUS_RUNNING,
    "diverged": api_pb2.STATUS_FAILURE,
    "failed": api_pb2.STATUS_FAILURE,
}


def write_hparams(folder: Path, rows: Sequence[Row], objective: str) -> None:
    """Write `folder` anew: a session for each job, with a scalar named `objective` if it is not NaN."""
    with replace_folder(folder) as staging:
        experiment = api_pb2.Experiment(
            hparam_infos=[api_pb2.HParamInfo(name=key) for key in varied_keys(rows)],
            metric_infos=[api_pb2.MetricInfo(name=api_pb2.MetricName(tag=objective))],
        )
        _write(staging, [_plugin_value(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment))])
        for row in rows:
            start = SessionStartInfo()
            for key, text in row.record.choices.items():
                try:
                    start.hparams[key].number_value = float(text)
                except ValueError:
                    start.hparams[key].string_value = text
            end = SessionEndInfo(status=_STATUS.get(row.record.status, api_pb2.STATUS_UNKNOWN))
            values = [
                _plugin_value(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)),
                _plugin_value(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end)),
            ]
            if not math.isnan(row.objective):
                values.append(Summary.Value(tag=objective, simple_value=row.objective))
            _write(staging / row.folder.name, values)


def _plugin_value(tag: str, data: HParamsPluginData) -> Summary.Value:
    return Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR)


def _write(folder: Path, values: list[Summary.Value]) -> None:
    writer = EventFileWriter(str(folder))
    writer.add_event(Event(summary=Summary(value=values)))
    writer.close()
