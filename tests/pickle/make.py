"""Writes the files of this folder with PyTorch and numpy: python make.py. Values are small, so that specs can list them."""
import collections
import pathlib
import pickle

import numpy as np
import torch

here = pathlib.Path(__file__).parent


def ramp(*shape, dtype=torch.float32, start=0):
    n = int(np.prod(shape))
    return (torch.arange(n, dtype=torch.float32) + start).to(dtype).reshape(shape)


def retriever():
    """The joint checkpoint of two CSA layers: hidden 8, rank 4, 2 heads of 8."""
    state = collections.OrderedDict()
    for i, layer in enumerate((0, 2)):
        prefix = f"retrievers.l{layer}."
        state[prefix + "wq_a.weight"] = ramp(4, 8, start=i) / 16
        state[prefix + "wq_b.weight"] = ramp(16, 4, start=i) / 32
        state[prefix + "q_norm_weight"] = ramp(4, start=1)
        state[prefix + "weights_proj.weight"] = ramp(2, 8, start=i) / 8
    return state


def every_dtype():
    names = "float32 bfloat16 float16 uint8 int8 int32 int64 float8_e4m3fn float64 bool"
    return {name: ramp(2, 3, dtype=getattr(torch, name)) for name in names.split()}


def views():
    base = ramp(4, 6)
    return {"transposed": base.t(), "narrow": base[1:3, 2:5], "stepped": base[::2, ::3], "scalar": base[2, 1],
            "expanded": ramp(3)[:, None].expand(3, 2), "nothing": base[:0], "shared": base,
            "parameter": torch.nn.Parameter(ramp(2))}


def nested():
    return {"model": {"a": ramp(2)}, "list": [1, -2, 3.5, "text", None, True], "tuple": ((1, 2), "x"), "state": {0: {"step": ramp(1)}},
            "bytes": b"\x00\xff", "large": 2**40, "size": torch.Size([2, 3]), "dtype": torch.bfloat16}


class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(3, 2)


def document():
    """A trace of 3 steps and 5 chunks, as the reference's dump writes it."""
    out = {}
    for layer in (10, 20):
        out[f"hidden_layer_{layer}"] = ramp(3, 8, dtype=torch.bfloat16, start=layer)
        out[f"compk_layer_{layer}"] = ramp(5, 12, dtype=torch.uint8)
        out[f"positions_layer_{layer}"] = torch.tensor([20, 21, 22], dtype=torch.int64)
        out[f"logits_layer_{layer}_token_0"] = ramp(5, dtype=torch.bfloat16)
    out["label_pointers"] = torch.tensor([0, 2, 2, 5], dtype=torch.int32)
    out["label_indices"] = torch.tensor([0, 3, 1, 2, 4], dtype=torch.int32)
    out["label_scores"] = torch.tensor([3, 4, 3, 5, 21], dtype=torch.int32)
    return out


def arrays():
    return {"f4": np.arange(6, dtype=np.float32).reshape(2, 3), "u1": np.arange(250, 255, dtype=np.uint8),
            "i8": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)), "f8": np.zeros(2), "number": np.float32(1.5),
            "count": np.int64(7), "empty": np.zeros((0, 3), np.float32)}


def main():
    torch.manual_seed(0)
    torch.save(retriever(), here / "retriever.pt")
    torch.save(retriever(), here / "retriever_stream.pt", _use_new_zipfile_serialization=False)
    torch.save(every_dtype(), here / "dtypes.pt")
    torch.save(views(), here / "views.pt")
    torch.save(nested(), here / "nested.pt")
    module = Module()
    torch.nn.init.constant_(module.inner.weight, 0.5)
    torch.nn.init.constant_(module.inner.bias, 0.25)
    torch.save(module.state_dict(), here / "module.pt")
    torch.save(ramp(3), here / "alone.pt")
    torch.save(arrays(), here / "arrays.pt")
    torch.save(Module(), here / "code.pt")
    with open(here / "doc_00000.pkl", "wb") as file:
        pickle.dump(document(), file)
    for protocol in (2, 3, 4, 5):
        with open(here / f"arrays_{protocol}.pkl", "wb") as file:
            pickle.dump(arrays(), file, protocol=protocol)
    with open(here / "dtypes_2.pkl", "wb") as file:
        pickle.dump(every_dtype(), file, protocol=2)


main()
