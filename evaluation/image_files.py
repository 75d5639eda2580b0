"""A folder with one file per picture, filled by any number of processes and gone on with after a stop."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..data.annotated_images import AnnotatedImage
from ..whole_files import remove_drafts, write_whole


class SettingsDifferError(ValueError):
    """A folder was filled with other settings."""


class ImageFiles:
    """
    A folder with one file per picture. `_settings.json` in it says how the files were made, so that a run with other
    settings does not go on with them.

    Args:
        folder (`str` or `Path`): Made if it does not exist.
        suffix (`str`): Ending of the files, such as `.json`.
        settings (`dict`, *optional*): What decides their content, as plain JSON values. None takes the folder as it
            is (to read what was made elsewhere).

    Raises:
        SettingsDifferError: If the folder was filled with other settings.
    """

    def __init__(self, folder: str | Path, suffix: str, settings: dict[str, Any] | None = None):
        self.folder = Path(folder)
        self.suffix = suffix
        if settings is None:
            return
        state = PartialState()
        if state.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_drafts(self.folder)
            if not self.settings_path.exists() and not any(self.folder.glob(f"*{suffix}")):
                write_whole(self.settings_path, json.dumps(settings, indent=2) + "\n")
        state.wait_for_everyone()
        self._check(json.loads(json.dumps(settings)))

    @property
    def settings_path(self) -> Path:
        """The file that says how the others were made."""
        return self.folder / "_settings.json"

    def path(self, image: AnnotatedImage) -> Path:
        """The file of a picture."""
        return self.folder / f"{image.stem}{self.suffix}"

    def fill(
        self,
        images: Sequence[AnnotatedImage],
        make: Callable[[list[AnnotatedImage]], list[bytes]],
        batch_size: int = 1,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """
        Make the files that are missing; with several processes each takes a part. Returns when this part is done, the
        same for the same pictures and number of processes: what is made of these files needs no waiting.

        Args:
            images (`Sequence[AnnotatedImage]`): All pictures.
            make (`Callable`): Contents of the files of some pictures.
            batch_size (`int`): Pictures per call of `make`.
            progress (`Callable`, *optional*): Called with the number of finished and of all files of this process.
        """
        state = PartialState()
        mine = list(images)[state.process_index :: state.num_processes]
        missing = [image for image in mine if not self.path(image).exists()]
        done = len(mine) - len(missing)
        if progress is not None:
            progress(done, len(mine))
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            for image, content in zip(batch, make(batch), strict=True):
                write_whole(self.path(image), content)
            if progress is not None:
                progress(done + start + len(batch), len(mine))

    def wait(self, images: Sequence[AnnotatedImage], seconds: float = 1.0) -> None:
        """
        Wait until all files are there. Not a barrier of the process group, which gives up after some minutes: parts of
        a large data set may differ by more. A process that fails is noticed by what launched it (`torchrun`).

        Args:
            images (`Sequence[AnnotatedImage]`): All pictures.
            seconds (`float`): Time between two looks.
        """
        missing = list(images)
        while missing := [image for image in missing if not self.path(image).exists()]:
            time.sleep(seconds)

    def _check(self, settings: dict[str, Any]) -> None:
        if not self.settings_path.exists():
            raise SettingsDifferError(
                f"Nothing says how the {self.suffix} files in {self.folder} were made. Choose another folder."
            )
        made = json.loads(self.settings_path.read_text(encoding="utf-8"))
        different = sorted(name for name in {*made, *settings} if made.get(name) != settings.get(name))
        if different:
            listed = "; ".join(f"{name}: {made.get(name)!r}, now {settings.get(name)!r}" for name in different)
            raise SettingsDifferError(
                f"{self.folder} was filled with other settings ({listed}). Choose another folder, or delete it."
            )


__all__ = ["ImageFiles", "SettingsDifferError"]
