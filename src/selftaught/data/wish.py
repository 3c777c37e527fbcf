"""What the readers of folders and of shards are asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from selftaught.core.errors import ConfigError
from selftaught.data import cache as stored
from selftaught.data.decode import Array, Failure, Form

START_SECONDS = 20.0
"""Without a number of workers given, they start once the rest would take longer than this."""

CRASHED: Array | Failure = Failure("the decoder crashed on it", lasting=False)
"""What becomes of a picture that ended its worker process."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Wish:
    """The form of every picture, and how it is come by; see `read_folder` for the meaning of each."""

    form: Form
    cache: Path | None
    workers: int | None
    in_memory_bytes: int
    progress: Progress | None = None


def wished(
    size: int,
    channels: int,
    limit_pixels: int,
    cache: Path | None,
    workers: int | None,
    in_memory_bytes: int,
    progress: Progress | None = None,
) -> Wish:
    """The same, checked. Raises `ConfigError` for what cannot be, `SaveError` for a cache it cannot write."""
    if channels not in (1, 3):
        raise ConfigError(f"channels must be 1 (grey) or 3 (colour), not {channels}")
    if size < 1 or limit_pixels < 1:
        raise ConfigError(f"size and limit_pixels must be at least 1, not {size} and {limit_pixels}")
    if workers is not None and workers < 0:
        raise ConfigError(f"workers must be 0 or more, not {workers}")
    folder = None if cache is None else stored.prepared(Path(cache))
    return Wish(Form(size, channels, limit_pixels), folder, workers, in_memory_bytes, progress)
