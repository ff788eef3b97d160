"""Reading weights: what torch and safetensors write, and refusal of everything that is damaged or hostile."""

import json
import pathlib
import pickle
import sys
import types
import zipfile

import made_pth
import ml_dtypes
import numpy as np
import pytest

from segjax.interop import files, pickled, safetensors
from segjax.types import InputError

X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
STATE = {"a.weight": X, "a.bias": X[0, 0].astype(np.float16), "bn.num_batches_tracked": np.array(7)}


def refused(path, message):
    with pytest.raises(InputError, match=message) as error:
        files.read(path)
    assert str(path) in str(error.value)


def same(found, expected):
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape)
        np.testing.assert_array_equal(found[name], value)


def test_what_torch_wrote():
    """A file of torch 2.15: views, half precisions, a parameter, an integer."""
    found = files.read(pathlib.Path(__file__).with_name("torch_2_15.pth")).arrays
    numbers = np.array([1.5, -2])
    expected = {"whole": X, "part": X[:, 1:, ::2], "half": numbers.astype(np.float16)}
    expected |= {"brain": numbers.astype(ml_dtypes.bfloat16), "parameter": np.ones(2, np.float32)}
    same(found, expected | {"bn.num_batches_tracked": np.array(7)})


@pytest.mark.parametrize("content", [STATE, {"state_dict": STATE, "epoch": 3}, {"model": STATE}])
def test_pth_and_what_training_scripts_wrap_it_in(tmp_path, content):
    made_pth.write(tmp_path / "a.pth", content)
    same(files.read(tmp_path / "a.pth").arrays, STATE)


def test_names_of_data_parallel_are_shortened(tmp_path):
    made_pth.write(tmp_path / "a.pth", {f"module.{name}": value for name, value in STATE.items()})
    same(files.read(tmp_path / "a.pth").arrays, STATE)


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def archive(path, content):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x/data.pkl", content)
    return path


@pytest.mark.parametrize(
    "function, args, name",
    [
        (pathlib.Path.touch, ("HERE",), "pathlib.Path.touch|builtins.getattr"),
        (eval, ("open('HERE', 'w')",), "builtins.eval"),
        (types.SimpleNamespace, (), "types.SimpleNamespace"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_but_tensors_is_run(tmp_path, function, args, name, protocol):
    marker = tmp_path / "ran"
    call = Call(function, *(text.replace("HERE", str(marker)) for text in args))
    path = archive(tmp_path / "bad.pth", pickle.dumps({"a": call}, protocol=protocol))
    refused(path, f"holds (__builtin__|{name}).*was not run")
    assert not marker.exists()


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x02ctorch\nFloatStorage\n)R.",  # calls a storage type
        b"\x80\x02ctorch._utils\n_rebuild_parameter\n}X\x01\x00\x00\x00aK\x01sb.",  # sets its attributes
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NK\x00(K\x01t(K\x01ttR.",  # a tensor without a storage
        b"\x80\x02X\x01\x00\x00\x00xQ.",  # a reference that is none
        b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x009X\x03\x00\x00\x00cpuK\x01tQ.",
        b"\x80\x02}",
        b"",
        b"\x80\x02K\x01.",  # a number
        b"\x80\x02}X\x01\x00\x00\x00aK\x01s.",  # a dict of a number
    ],
)
def test_a_broken_or_hostile_pickle_is_an_input_error(tmp_path, code):
    refused(archive(tmp_path / "bad.pth", code), "bad.pth: ")


@pytest.mark.parametrize(
    "size, stride",
    [((3, 9), (9, 1)), ((25,), (1,)), ((2,), (-1,)), ((10**9,), (0,)), ((2, 2), (24, 1)), ((2,), (1, 1))],
)
def test_a_tensor_beyond_its_storage_is_refused(size, stride):
    rebuild = pickled.ADMITTED["torch._utils", "_rebuild_tensor_v2"]
    with pytest.raises(ValueError, match="exceeds 24 numbers|is not that of a storage"):
        rebuild(X.ravel(), 0, size, stride, False, {})
    np.testing.assert_array_equal(rebuild(X.ravel(), 3, (2, 2), (1, 4)), [[3, 7], [4, 8]])


def test_damaged_archives(tmp_path):
    made_pth.write(tmp_path / "short.pth", STATE, cut=2)
    refused(tmp_path / "short.pth", "storage 0 has 94 bytes, expected 24 of float32")
    made_pth.write(tmp_path / "packed.pth", STATE, compression=zipfile.ZIP_DEFLATED)
    refused(tmp_path / "packed.pth", "is compressed")
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    refused(tmp_path / "old.pth", "torch 1.6 or newer.*torch.save")
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as file:
        file.writestr("readme", "x")
    refused(tmp_path / "other.pth", "0 data.pkl")
    made_pth.write(tmp_path / "numbers.pth", {"a": X, "b": [1, 2]})
    refused(tmp_path / "numbers.pth", "'b' is list, expected tensors by name")
    made_pth.write(tmp_path / "whole.pth", STATE)
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-200])
    refused(tmp_path / "cut.pth", "torch 1.6 or newer")


def test_safetensors_by_its_definition(tmp_path):
    """The bytes written out: length, header, data."""
    path = tmp_path / "a.safetensors"
    header = b'{"__metadata__":{"k":"v"},"b":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},'
    header += b'"a":{"dtype":"I32","shape":[1,2],"data_offsets":[4,12]}}  '
    body = b"\x80\x3f\x00\xc0" + np.array([5, -6], "<i4").tobytes()  # 1 and -2, the upper halves of float32
    path.write_bytes(len(header).to_bytes(8, "little") + header + body)
    found = files.read(path)
    assert found.metadata == {"k": "v"}
    same(found.arrays, {"b": np.array([1, -2], ml_dtypes.bfloat16), "a": np.array([[5, -6]], np.int32)})


def test_safetensors_comes_back(tmp_path):
    values = STATE | {"z": np.zeros((0, 3), np.float32), "t": X.T, "big": X.astype(">f4"), "flag": np.array(True)}
    safetensors.write(tmp_path / "a.safetensors", values, {"k": "v"})
    arrays, metadata = safetensors.read(tmp_path / "a.safetensors")
    assert metadata == {"k": "v"}
    same(arrays, {name: value.astype(value.dtype.newbyteorder("<")) for name, value in values.items()})
    assert (int.from_bytes((tmp_path / "a.safetensors").read_bytes()[:8], "little") + 8) % 8 == 0
    with pytest.raises(ValueError, match="'c' is complex64"):
        safetensors.write(tmp_path / "b.safetensors", {"c": np.zeros(1, np.complex64)})
    with pytest.raises(InputError, match="cannot write"):
        safetensors.write(tmp_path / "no" / "b.safetensors", STATE)


@pytest.mark.parametrize(
    "header, message",
    [
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, "does not fill bytes 0 to 8"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, "does not fill"),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, "does not fill"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "8 bytes of arrays, its header describes 4"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "overlap or leave a gap"),
        ({"a": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}, "F8_E4M3"),
        ({"a": {"shape": [2]}}, "not described as an array"),
        ({"a": 3}, "not described as an array"),
        ({"__metadata__": 3}, "__metadata__ is int"),
    ],
)
def test_damaged_safetensors(tmp_path, header, message):
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    refused(tmp_path / "a.safetensors", message)


def test_safetensors_that_are_none(tmp_path):
    for name, data, message in (
        ("long", (10**6).to_bytes(8, "little") + b"{}", "not a whole safetensors file"),
        ("json", (3).to_bytes(8, "little") + b"{a}", "not the JSON"),
        ("twice", (13).to_bytes(8, "little") + b'{"a":1,"a":2}', "occurs twice"),
    ):
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, message)


def test_a_missing_file_names_its_neighbours(tmp_path):
    made_pth.write(tmp_path / "resnet18.pth", STATE)
    refused(tmp_path / "resnet81.pth", "no file .*did you mean 'resnet18.pth'.*weights there: resnet18.pth")
    refused(tmp_path / "no" / "a.pth", "no file .*no folder")
    refused(tmp_path, "is a folder: expected a file of weights in it, resnet18.pth")


class Hub(types.ModuleType):
    """Stands for huggingface_hub: what is asked of it, a cache of files and those on the hub."""

    def __init__(self, folder):
        super().__init__("huggingface_hub")
        self.folder, self.cached, self.asked = folder, set(), []

    def hf_hub_download(self, repository, name, revision=None, local_files_only=False):
        self.asked.append((repository, name, revision, local_files_only))
        if not (self.folder / name).is_file() or (local_files_only and name not in self.cached):
            raise OSError(f"404 {name}\nmore")
        return str(self.folder / name)


def test_a_hub_id(tmp_path, monkeypatch):
    hub = Hub(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    made_pth.write(tmp_path / "pytorch_model.bin", STATE)
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    for text in ("timm/resnet18.a1_in1k", "hf-hub:timm/resnet18.a1_in1k"):
        found = files.read(text)
        same(found.arrays, STATE)
        assert found.config == {"architecture": "resnet18"}
    expected = [(name, local) for local in (True, False) for name in ("model.safetensors", "pytorch_model.bin")]
    assert hub.asked[:4] == [("timm/resnet18.a1_in1k", name, None, local) for name, local in expected]
    files.read("a/b@main:pytorch_model.bin")
    assert ("a/b", "pytorch_model.bin", "main", False) in hub.asked
    hub.cached, hub.asked = {"pytorch_model.bin"}, []
    files.read("a/b")
    assert all(local for *_, local in hub.asked)  # nothing but the cache was asked
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(InputError, match="^a/b of the Hugging Face hub cannot be downloaded: 404 x.bin$"):
        files.read("a/b:x.bin")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="is not in the cache, and HF_HUB_OFFLINE allows no download"):
        files.read("a/b:x.bin")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"needs the package huggingface_hub: pip install 'segjax\[hub\]'"):
        files.read("timm/resnet18.a1_in1k")
