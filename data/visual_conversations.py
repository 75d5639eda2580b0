"""LLaVA-Instruct-150k: conversations about images of COCO, without masks.

ROOT/llava_dataset/llava_instruct_150k.json     ROOT/coco/train2017/ + image
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .data_files import DataFileError, file_in, read_json
from .mask_targets import log_left_out, text_field


IMAGE_TOKEN = "<image>"
_SPEAKERS = {"human": 0, "gpt": 1}


@dataclass(frozen=True)
class VisualConversation:
    """
    Args:
        path (`Path`): The image file.
        messages (`list[str]`): The user's and the assistant's in turns, the user's first. `<image>` stands in them
            where the model sees the image; a conversation may lack it.
    """

    path: Path
    messages: list[str]


class LlavaInstruct:
    """
    Args:
        root (`str` or `Path`): The data root.
        name (`str`): Name of the file, without its ending.
        fixed (`bool`): The originals drop a first message that is not the user's, and with it possibly the image: such
            a conversation is learnt without seeing it. `True` puts the image at its beginning.

    Raises:
        DataFileError: If the file or the folder of images is missing, or the file has another form.
    """

    def __init__(self, root: str | Path, name: str = "llava_instruct_150k", fixed: bool = False):
        self.name, self.fixed = name, fixed
        self.file = Path(root) / "llava_dataset" / f"{name}.json"
        self.images = Path(root) / "coco" / "train2017"
        if not self.file.is_file():
            raise DataFileError(f"{name}: the file {self.file} does not exist.")
        if not self.images.is_dir():
            raise DataFileError(f"{name}: the folder {self.images} does not exist.")
        entries = read_json(self.file)
        if not isinstance(entries, list) or not entries:
            raise DataFileError(f"{self.file} must be a list of one conversation or more.")
        self._entries = [
            self._needed(entry, f"{self.file}, entry {number}") for number, entry in enumerate(entries, start=1)
        ]
        self._log()

    def _log(self) -> None:
        """Say what the originals leave out without a word."""
        answered_first = [turns[0][0] == "gpt" for _, turns in self._entries]
        unseen = [
            not any(IMAGE_TOKEN in text for _, text in turns[dropped:])
            for (_, turns), dropped in zip(self._entries, answered_first, strict=True)
        ]
        log_left_out(
            f"{self.name}: {len(self._entries)} conversations",
            {
                "first messages that are not the user's are left out": sum(answered_first),
                "conversations are learnt without their image": 0 if self.fixed else sum(unseen),
            },
        )

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> VisualConversation:
        """
        Raises:
            DataFileError: If two messages in a row come from the same speaker, or the image's name leads elsewhere.
        """
        image, turns = self._entries[index]
        what = f"{self.file}, entry {index + 1}"
        try:
            path = file_in(self.images, image)
        except ValueError as error:
            raise DataFileError(f"{what}: {error}") from None
        speakers = [_SPEAKERS.get(speaker) for speaker, _ in turns]
        if None in speakers:
            raise DataFileError(
                f"{what} has the speaker {turns[speakers.index(None)][0]!r}; allowed are human and gpt."
            )
        if speakers[0] == _SPEAKERS["gpt"]:
            speakers, turns = speakers[1:], turns[1:]
        if not turns or any(speaker != number % 2 for number, speaker in enumerate(speakers)):
            raise DataFileError(f"{what}: human and gpt must speak in turns, and human at least once.")
        messages = [image_first(text) for _, text in turns]
        if self.fixed and not any(IMAGE_TOKEN in text for text in messages):
            messages[0] = f"{IMAGE_TOKEN}\n{messages[0]}"
        return VisualConversation(path, messages)

    @staticmethod
    def _needed(entry: Any, what: str) -> tuple[str, list[tuple[str, str]]]:
        image = text_field(entry, "image", what)
        turns = entry.get("conversations")
        if not isinstance(turns, list) or not turns:
            raise DataFileError(f"{what}: its `conversations` must be a list of one message or more.")
        return image, [(text_field(turn, "from", what), text_field(turn, "value", what)) for turn in turns]


def image_first(text: str) -> str:
    """
    Bring `<image>` to the beginning of a message that has it, once, whoever says it. Others keep their spaces.

    Example:
        >>> image_first("What is shown? <image>")
        '<image>\\nWhat is shown?'
    """
    if IMAGE_TOKEN not in text:
        return text
    return f"{IMAGE_TOKEN}\n{text.replace(IMAGE_TOKEN, '').strip()}".strip()


__all__ = ["IMAGE_TOKEN", "LlavaInstruct", "VisualConversation", "image_first"]
