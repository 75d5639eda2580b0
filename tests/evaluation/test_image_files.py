"""One file per image: nothing twice, nothing half, nothing mixed; and the attention maps in such files."""

import pickle

import numpy as np
import pytest
import torch

from reasonseg.data.annotated_images import AnnotatedImage
from reasonseg.evaluation.grounded_answers import ImageFiles, SettingsDifferError
from reasonseg.evaluation.phrase_grounding import AttendedAnswer, read_original_maps
from tests.support.forked_python import run_distributed


IMAGES = [AnnotatedImage(number, f"train/image_{number}.jpg", (6, 8)) for number in range(7)]


def make_with(log):
    def make(batch):
        log.append([image.id for image in batch])
        return [str(image.id).encode() for image in batch]

    return make


def test_files_are_made_once_in_batches(tmp_path):
    files, made, steps = ImageFiles(tmp_path / "new", ".txt", {"a": 1}), [], []
    files.path(IMAGES[2]).write_bytes(b"kept")
    files.fill(IMAGES, make_with(made), batch_size=4, progress=lambda *step: steps.append(step))
    assert made == [[0, 1, 3, 4], [5, 6]]
    assert steps == [(1, 7), (5, 7), (7, 7)]
    assert [files.path(image).read_bytes() for image in IMAGES] == [b"0", b"1", b"kept", b"3", b"4", b"5", b"6"]
    assert files.path(IMAGES[3]).name == "image_3.txt"
    ImageFiles(tmp_path / "new", ".txt", {"a": 1}).fill(IMAGES, make_with(made))
    assert len(made) == 2


def test_a_stopped_run_goes_on(tmp_path):
    made = []

    def stop_at_three(batch):
        if batch[0].id == 3:
            raise KeyboardInterrupt
        return make_with(made)(batch)

    files = ImageFiles(tmp_path, ".txt", {})
    with pytest.raises(KeyboardInterrupt):
        files.fill(IMAGES, stop_at_three)
    files.fill(IMAGES, make_with(made))
    assert made == [[number] for number in range(7)]
    assert not list(tmp_path.glob(".*partial"))


def test_drafts_of_a_killed_run_are_removed(tmp_path):
    ImageFiles(tmp_path, ".txt", {}).fill(IMAGES[:1], make_with([]))
    draft = tmp_path / ".image_1.txt.4194305.partial"  # a number that no process has
    draft.write_text("half", encoding="utf-8")
    ImageFiles(tmp_path, ".txt", {})
    assert not draft.exists()


def test_other_settings_are_refused(tmp_path):
    ImageFiles(tmp_path / "a", ".txt", {"question": "What?", "heads": [1]}).fill(IMAGES[:1], make_with([]))
    with pytest.raises(SettingsDifferError, match=r"heads: \[1\], now 'paper'; question: 'What\?', now 'Why\?'"):
        ImageFiles(tmp_path / "a", ".txt", {"question": "Why?", "heads": "paper"})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "image_0.txt").write_bytes(b"")
    with pytest.raises(SettingsDifferError, match=r"Nothing says how the \.txt files"):
        ImageFiles(tmp_path / "b", ".txt", {})
    assert ImageFiles(tmp_path / "b", ".txt").path(IMAGES[0]).exists(), "reading asks for nothing"


SHARED = """
import sys
from accelerate import PartialState
from reasonseg.data.annotated_images import AnnotatedImage
from reasonseg.evaluation.grounded_answers import ImageFiles
state = PartialState(cpu=True)
images = [AnnotatedImage(n, f"{n}.jpg", (1, 1)) for n in range(7)]
files = ImageFiles(sys.argv[1], ".txt", {"a": 1})
files.fill(images, lambda batch: [str(state.process_index).encode() for _ in batch], batch_size=2)
files.wait(images, seconds=0.1)
missing = [image for image in images if not files.path(image).exists()]
print(f"MISSING {len(missing)}")
state.destroy_process_group()
"""


def test_two_processes_share_the_images(tmp_path):
    script = tmp_path / "share.py"
    script.write_text(SHARED, encoding="utf-8")
    for done in run_distributed(script, tmp_path / "out", processes=2):
        assert "MISSING 0" in done.stdout.splitlines(), done.stdout + done.stderr[-2000:]
    makers = [(tmp_path / "out" / f"{number}.txt").read_text(encoding="utf-8") for number in range(7)]
    assert makers == ["0", "1", "0", "1", "0", "1", "0"]


def attended() -> AttendedAnswer:
    generator = np.random.default_rng(0)
    return AttendedAnswer(
        text="Ein Käfer 🐞",
        token_ids=np.array([5, 6, 7]),
        token_spans=np.array([[0, 3], [3, 9], [9, 11]]),
        maps=generator.random((3, 4, 5), dtype=np.float32),
        grid_box=np.array([0.0, -1.0, 8.0, 7.0]),
        image_size=np.array([6, 8]),
    )


def test_maps_come_back_as_they_were(tmp_path):
    path, answer = tmp_path / "x.npz", attended()
    path.write_bytes(answer.to_bytes())
    back = AttendedAnswer.read(path)
    assert back.text == answer.text
    for name in ("token_ids", "token_spans", "maps", "grid_box", "image_size"):
        np.testing.assert_array_equal(getattr(back, name), getattr(answer, name))
        assert getattr(back, name).dtype == getattr(answer, name).dtype
    empty = AttendedAnswer("", *(np.zeros(shape) for shape in ((0,), (0, 2), (0, 4, 5), (4,), (2,))))
    path.write_bytes(empty.to_bytes())
    assert AttendedAnswer.read(path).maps.shape == (0, 4, 5)


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(FileNotFoundError, match=r"no attention maps .*x\.npz"):
        AttendedAnswer.read(path)
    whole = attended().to_bytes()
    for content in (b"", b"text", whole[:200], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.npz holds no attention maps .* Delete it"):
            AttendedAnswer.read(path)
    np.savez(path, maps=np.zeros(3))
    with pytest.raises(ValueError, match="holds no attention maps"):
        AttendedAnswer.read(path)


def test_files_of_the_original(tmp_path):
    path = tmp_path / "x.pth"
    maps = torch.rand(3, 4, 4)
    torch.save({"answer": "a b c", "sequences": torch.tensor([1, 10, 11, 12]), "attentions": maps.half()}, path)
    answer = read_original_maps(path, lambda ids: " ".join("abc"[token - 10] for token in ids), (60, 80))
    assert answer.text == "a b c"
    assert answer.token_spans.tolist() == [[0, 1], [1, 3], [3, 5]]
    np.testing.assert_array_equal(answer.maps, maps.half().float().numpy())
    assert answer.grid_box.tolist() == [0, -10, 80, 70]
    whole = path.read_bytes()
    for other in ([1], {"sequences": torch.tensor([1])}, {"sequences": [1], "attentions": [maps]}):
        torch.save(other, path)
        with pytest.raises(ValueError, match="lacks `sequences` or `attentions`"):
            read_original_maps(path, str, (60, 80))
    for content in (b"", b"text", pickle.dumps(object, protocol=2), whole[:200], whole[:-30]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"x\.pth holds no attention maps: .* Make it again"):
            read_original_maps(path, str, (60, 80))
