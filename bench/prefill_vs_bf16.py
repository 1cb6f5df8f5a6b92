#!/usr/bin/env python3
"""Chunked prefill over a packed cache, by composition: packed pages to 16-bit rows (our dequantize), then flash attention over those rows
and the chunk's own. Against the same flash attention over a BF16 cache, in the same process on the same GPU.

  python3 bench/prefill_vs_bf16.py --library build/cuda/bin/libkvrazor_cuda_store_c.so --out bench/results [--recipes razor-2,oscar]

Every time is the median of graph replays. The rows of one layer lie in a workspace that all layers share; reading them back, copying the
chunk's rows behind them and the attention are all inside the measured time.
"""

import argparse
import ctypes
import json
import pathlib
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from cuda_timing import Library, pointer, stream_pointer, time_graph

PAGE = 128
REPEATS = 4  # of a step in a graph


def attention(q, k, v):
    """q [1, qo_heads, new, D], k and v [1, kv_heads, all, D]: the chunk sees everything before it, and itself causally."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=causal_lower_right(q.shape[2], k.shape[2]), enable_gqa=True)


def heads_first(rows):
    return rows.permute(1, 0, 2).unsqueeze(0)


class Packed:
    """A cache of whole pages, sealed on the GPU from random rows, and the workspace for one layer in 16 bits."""

    def __init__(self, library, recipe, args):
        self.library, self.args = library, args
        self.pages = args.context // PAGE
        self.plan = ctypes.c_void_p()
        library.call("kvrazor_cuda_store_plan", recipe.encode(), args.head_dim, args.kv_heads, self.pages, ctypes.byref(self.plan))
        self.page_bytes = library.c.kvrazor_cuda_store_page_bytes(self.plan)
        rows = (self.pages * PAGE, args.kv_heads, args.head_dim)
        self.original = [torch.randn(rows, dtype=torch.float16, device="cuda") for _ in range(2)]
        self.packed = torch.zeros(self.pages * self.page_bytes, dtype=torch.uint8, device="cuda")
        jobs = torch.zeros((self.pages, 8), dtype=torch.int32, device="cuda")
        jobs[:, 0] = torch.arange(self.pages, device="cuda") * PAGE
        jobs[:, 1] = torch.randperm(self.pages, device="cuda")
        jobs[:, 2:4] = -1
        library.call("kvrazor_cuda_store_seal", self.plan, *map(pointer, self.original), pointer(self.packed), pointer(jobs), self.pages, stream_pointer())
        torch.cuda.synchronize()
        self.back = torch.zeros((self.pages, 4), dtype=torch.int32, device="cuda")
        self.back[:, 0] = jobs[:, 1]
        self.back[:, 1] = jobs[:, 0]
        self.back[:, 2] = -1

    def dequantize(self, k, v):
        self.library.call("kvrazor_cuda_store_dequantize", self.plan, pointer(self.packed), pointer(k), pointer(v), ctypes.c_int64(0),
                          ctypes.c_int64(0), pointer(self.back), self.pages, stream_pointer())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", required=True, type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, help="folder for <gpu>/prefill_vs_bf16.json")
    parser.add_argument("--recipes", default="razor-2,oscar")
    parser.add_argument("--chunks", default="512,2048", help="new tokens")
    parser.add_argument("--context", type=int, default=32768, help="packed tokens, a multiple of 128")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--qo-heads", type=int, default=32)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("prefill_vs_bf16: no CUDA device on this machine, nothing was measured")
        return 0
    torch.manual_seed(7)
    gpu = torch.cuda.get_device_name()
    library = Library(args.library)  # bench/backends/cuda/store_c_abi.h
    library.c.kvrazor_cuda_store_page_bytes.restype = ctypes.c_int64
    records = []
    print(f"{gpu}, torch {torch.__version__}, {args.context} packed tokens, flash attention")
    print(f"{'recipe':>10} {'new':>6} {'us':>9} {'dequantize':>11} {'bf16':>9} {'tokens/s of bf16':>17}")
    for recipe in args.recipes.split(","):
        cache = Packed(library, recipe, args)
        for new in map(int, args.chunks.split(",")):
            everything = (args.context + new, args.kv_heads, args.head_dim)
            k, v = (torch.empty(everything, dtype=torch.float16, device="cuda") for _ in range(2))
            chunk = [torch.randn((new, args.kv_heads, args.head_dim), dtype=torch.float16, device="cuda") for _ in range(2)]
            q = torch.randn((1, args.qo_heads, new, args.head_dim), dtype=torch.float16, device="cuda")
            result = []

            def step():
                cache.dequantize(k, v)
                k[args.context:].copy_(chunk[0])
                v[args.context:].copy_(chunk[1])
                result[:] = [attention(q, heads_first(k), heads_first(v))]

            us, spread = time_graph([step] * REPEATS)
            alone, _ = time_graph([lambda: cache.dequantize(k, v)] * REPEATS)
            # What the rows say, and that they are the cache: its quantization error, not garbage.
            for got, want in zip((k, v), cache.original):
                error = ((got[:args.context].float() - want.float()).norm() / want.float().norm()).item()
                if not error < 0.7:
                    raise RuntimeError(f"{recipe}: rows read back are {error:.2f} off")
            if not torch.isfinite(result[0]).all():
                raise RuntimeError(f"{recipe}, {new} new tokens: the result is not finite")
            bf16 = [x.bfloat16() for x in (q, k, v)]
            best, _ = time_graph([lambda: attention(bf16[0], heads_first(bf16[1]), heads_first(bf16[2]))] * REPEATS)
            records.append({"recipe": recipe, "new_tokens": new, "context": args.context, "us": round(us, 1), "spread": round(spread, 4),
                            "dequantize_us": round(alone, 1), "bf16_us": round(best, 1), "bf16_name": "flash", "ratio": round(best / us, 3)})
            print(f"{recipe:>10} {new:>6} {us:>9.1f} {alone:>11.1f} {best:>9.1f} {best / us:>17.2f}", flush=True)
        library.c.kvrazor_cuda_store_free(cache.plan)
    if args.out:
        folder = args.out / gpu.lower().replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "prefill_vs_bf16.json").write_text(json.dumps(
            {"gpu": gpu, "torch": torch.__version__, "head_dim": args.head_dim, "kv_heads": args.kv_heads, "qo_heads": args.qo_heads,
             "results": records}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
