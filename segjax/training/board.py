"""TensorBoard event files, written at once and by this thread, without TensorFlow.

tensorboardX's own ``SummaryWriter`` writes in a thread of its own, and waits for it for ever once a full disk has ended
it; its messages and its checksum are used here, its thread is not. A record is one unbuffered write: a killed run
leaves whole records behind. Format: TFRecord, length (u64), masked CRC-32C of it, message, masked CRC-32C of that.
"""

import pathlib
import socket
import struct
import sys
import time
from collections.abc import Mapping

from segjax.types import HostArray


def _import_without_torch() -> None:
    """tensorboardX imports PyTorch where it is installed, for which we have no use: seconds, and hundreds of MB."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None
    try:
        import tensorboardX  # noqa: F401
    finally:
        if hidden:
            del sys.modules["torch"]


_import_without_torch()
from tensorboardX import summary  # noqa: E402
from tensorboardX.proto.event_pb2 import Event, SessionLog  # noqa: E402
from tensorboardX.proto.summary_pb2 import Summary  # noqa: E402
from tensorboardX.record_writer import masked_crc32c  # noqa: E402


class Board:
    """One event file.

    Args:
      folder: where TensorBoard looks; made if absent.
      start_step: TensorBoard is told to forget what earlier files of the folder hold after this step.
    """

    def __init__(self, folder: pathlib.Path, start_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns() // 10**9}.{socket.gethostname()}.{time.time_ns()}"
        self._file = open(folder / name, "xb", buffering=0)  # noqa: SIM115  closed by close()
        self._write(Event(file_version="brain.Event:2", step=start_step + 1))
        self._write(Event(session_log=SessionLog(status=SessionLog.START), step=start_step + 1))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes finite numbers of a step."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(step=step, summary=Summary(value=values)))

    def image(self, step: int, name: str, image: HostArray) -> None:
        """Writes a picture, u8[H, W, 3]."""
        self._write(Event(step=step, summary=summary.image(name, image, dataformats="HWC")))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        message = event.SerializeToString()
        length = struct.pack("<Q", len(message))
        checks = [struct.pack("<I", masked_crc32c(part)) for part in (length, message)]
        self._file.write(length + checks[0] + message + checks[1])
