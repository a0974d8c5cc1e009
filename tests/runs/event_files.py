"""Writes TensorBoard event files record by record, so that their times and faults are the test's own."""

import struct

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c


def scalar(step, wall_time=0.0, **numbers):
    """An event with scalars; `__` in a name stands for a slash."""
    values = [summary_pb2.Summary.Value(tag=tag.replace("__", "/"), simple_value=number) for tag, number in numbers.items()]
    return event_pb2.Event(step=step, wall_time=wall_time, summary=summary_pb2.Summary(value=values))


def begin(wall_time):
    """The first event of every file."""
    return event_pb2.Event(wall_time=wall_time, file_version="brain.Event:2")


def header(size):
    """What stands before a record of so many bytes."""
    promise = struct.pack("<Q", size)
    return promise + struct.pack("<I", masked_crc32c(promise))


def record(event):
    """The bytes of an event in a file."""
    content = event.SerializeToString()
    return header(len(content)) + content + struct.pack("<I", masked_crc32c(content))


def write(path, *events):
    """An event file."""
    path.write_bytes(b"".join(map(record, events)))
    return path
