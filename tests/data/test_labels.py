"""Classes of images from the names of their folders."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from thrifty.base.events import Event, listening
from thrifty.data.labels import class_labels

CONFIG = SimpleNamespace(id2label={0: "tabby, tabby cat", 1: "Great-Dane", 2: "red fox, Vulpes vulpes"})


def _labels(folder: Path, names: list[str], ids: list[str], config: object = CONFIG) -> tuple[list[int] | None, list[str]]:
    for name in names:
        (folder / name).mkdir()
    heard: list[Event] = []
    with listening(heard.append):
        found = class_labels(str(folder), ids, config)
    return None if found is None else found.tolist(), [event.message for event in heard]


@pytest.mark.parametrize(
    "names", [["tabby cat", "great_dane", "red fox"], ["Tabby", "GREAT DANE", "red_fox,_vulpes_vulpes"], ["tabby", "red fox"]]
)
def test_folders_that_are_called_as_classes(names: list[str], tmp_path: Path) -> None:
    wanted = {"t": 0, "g": 1, "r": 2}
    found, said = _labels(tmp_path, names, [f"{name}/{number}.png" for name in names for number in range(2)])
    assert found == [wanted[name[0].lower()] for name in names for _ in range(2)] and not said


def test_as_many_folders_as_classes_are_taken_in_order(tmp_path: Path) -> None:
    found, said = _labels(tmp_path, ["n02", "n01", "n03"], ["n03/a.png", "n01/deep/b.png", "n02/c.png"])
    assert found == [2, 0, 1] and "in the order of names" in said[0]


@pytest.mark.parametrize(
    ("names", "stranger"), [(["tabby", "zebra"], "zebra"), (["n01", "n02"], "n01"), (["tabby", "red fox", "zebra"], "zebra")]
)
def test_folders_that_are_no_classes(names: list[str], stranger: str, tmp_path: Path) -> None:
    found, said = _labels(tmp_path, names, [f"{name}/a.png" for name in names])
    assert found is None and f"sub-folder {stranger} is not one of the model's 3 classes" in said[0]


def test_images_without_folders_have_no_class(tmp_path: Path) -> None:
    assert _labels(tmp_path, ["tabby"], ["tabby/a.png", "b.png"]) == (None, [])


def test_a_name_that_two_classes_share_is_none_of_them(tmp_path: Path) -> None:
    crane = SimpleNamespace(id2label={0: "crane, bird", 1: "crane, machine"})
    found, said = _labels(tmp_path, ["crane"], ["crane/a.png"], crane)
    assert found is None and "crane" in said[0]
