"""Files of tensors come back as they were written, or it is told that they do not."""

import pytest
import torch
from safetensors.torch import save_file

from mmjsd.tensors import read_tensors, write_tensors

TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "channels_last": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "step": torch.tensor(7),
    "generator": torch.tensor([0, 255], dtype=torch.uint8),
    "none": torch.zeros(0, 3),
}
DESCRIPTION = {"model": '{"content_dim": 2}'}


def equal(first, second) -> bool:
    return first.keys() == second.keys() and all(
        (first[name].dtype, first[name].shape) == (second[name].dtype, second[name].shape)
        and bool((first[name] == second[name]).all())
        for name in first
    )


def test_come_back_with_their_description(tmp_path):
    write_tensors(tmp_path / "a", TENSORS, DESCRIPTION)
    tensors, description = read_tensors(tmp_path / "a")
    assert equal(tensors, TENSORS)
    assert description == DESCRIPTION
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_of_others_come_without_a_checksum(tmp_path):
    save_file({"weight": TENSORS["weight"]}, tmp_path / "a")
    tensors, description = read_tensors(tmp_path / "a")
    assert (equal(tensors, {"weight": TENSORS["weight"]}), description) == (True, {})


def test_no_flipped_bit_changes_them_in_silence(tmp_path):
    file = tmp_path / "a"
    write_tensors(file, TENSORS, DESCRIPTION)
    whole = file.read_bytes()
    told = 0
    for place in range(len(whole)):
        for bit in (1, 16):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            try:
                tensors, description = read_tensors(file)
            except ValueError:
                told += 1
                continue
            assert equal(tensors, TENSORS), place
            assert description.get("model", DESCRIPTION["model"]) == DESCRIPTION["model"], place
    assert told > 1.5 * len(whole)


def test_that_are_none_say_so(tmp_path):
    (tmp_path / "a").write_bytes(b"{}")
    with pytest.raises(ValueError, match="header"):
        read_tensors(tmp_path / "a")
