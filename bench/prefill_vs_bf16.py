#!/usr/bin/env python3
"""Chunked prefill over a packed cache against the best BF16 attention over the same lengths, in the same process on the same GPU.

  python3 bench/prefill_vs_bf16.py --library build/cuda/bin/libkvrazor_cuda_store_c.so --out bench/results [--recipes razor-2 oscar:k4g32,v4g32]

Baselines: torch scaled_dot_product_attention over a contiguous BF16 cache, enable_gqa: FlashAttention, causal among the new tokens, and cuDNN,
which takes no such mask and so sees every token (at most 3 % more work here); the better of the two. Every time is the median of graph
replays. Ours includes everything: reading pages back, sinks, --residual tokens in 16 bits, the chunk's rows; the page table is random.
"""

import argparse
import ctypes
import json
import pathlib
import subprocess
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from cuda_timing import Library, pointer, stream_pointer, time_graph

PAGE = 128
SINK_ROWS = 16
REPEATS = 4  # of a step in a graph


class Spec(ctypes.Structure):
    _fields_ = [("recipe", ctypes.c_char_p)] + [
        (n, ctypes.c_int32) for n in ("head_dim", "num_kv_heads", "num_qo_heads", "max_batch_size", "max_pages", "max_new_tokens")
    ] + [("softmax_scale", ctypes.c_float), ("bf16", ctypes.c_int32)]


class Arrays(ctypes.Structure):
    _fields_ = [(n, ctypes.c_void_p) for n in ("packed_pages", "row_pages", "sink_rows", "page_table", "kv_len", "new_begin", "q", "k", "v",
                                               "out", "workspace")] + [("batch_size", ctypes.c_int32), ("stream", ctypes.c_void_p)]


class Sizes(ctypes.Structure):
    _fields_ = [(n, ctypes.c_int64) for n in ("row_page_bytes", "sink_bytes", "workspace_bytes")] + [("sink_tokens", ctypes.c_int32)]


def flash(q, k, v):
    """q [1, qo_heads, new, D], k and v [1, kv_heads, all, D]: the chunk sees everything before it, and itself causally."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=causal_lower_right(q.shape[2], k.shape[2]), enable_gqa=True)


def cudnn(q, k, v):
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def heads_first(rows):
    return rows.permute(1, 0, 2).unsqueeze(0)


def baselines(args, new):
    """Microseconds by name."""
    length = args.context + args.residual + new
    q = torch.randn((1, args.qo_heads, new, args.head_dim), dtype=torch.bfloat16, device="cuda")
    k, v = (torch.randn((1, args.kv_heads, length, args.head_dim), dtype=torch.bfloat16, device="cuda") for _ in range(2))
    times = {}
    for name, attention in (("cudnn", cudnn), ("flash", flash)):
        try:
            times[name] = time_graph([lambda: attention(q, k, v)] * REPEATS)[0]
        except RuntimeError as e:
            print(f"  {name}: {str(e).splitlines()[0]}", file=sys.stderr)
    return times


def unswizzle(rows):
    """Rows of a row page or of sinks [..., tokens, D] as stored, to channels in order."""
    tokens, dim = rows.shape[-2:]
    token = torch.arange(tokens, device=rows.device)[:, None]
    chunk = torch.arange(dim // 8, device=rows.device)[None, :] ^ (token & 7)
    return rows.unflatten(-1, (dim // 8, 8))[..., token, chunk, :].flatten(-2)


class Packed:
    """A cache of whole pages, sealed on the GPU from random rows, sinks, and a page of rows behind them."""

    def __init__(self, library, recipe, args, new_tokens):
        self.library, self.args = library, args
        self.pages = args.context // PAGE
        self.store, self.plan = ctypes.c_void_p(), ctypes.c_void_p()
        library.call("kvrazor_cuda_store_plan", recipe.encode(), args.head_dim, args.kv_heads, self.pages, ctypes.byref(self.store))
        spec = Spec(recipe.encode(), args.head_dim, args.kv_heads, args.qo_heads, 1, self.pages + 1, new_tokens, args.head_dim ** -0.5, args.bf16)
        library.call("kvrazor_cuda_prefill_plan", ctypes.byref(spec), ctypes.byref(self.plan))
        self.explanation = library.c.kvrazor_cuda_prefill_explain(self.plan).decode()
        sizes = Sizes()
        library.c.kvrazor_cuda_prefill_get_sizes(self.plan, ctypes.byref(sizes))
        self.sink_tokens = sizes.sink_tokens
        rows = (self.pages * PAGE, args.kv_heads, args.head_dim)
        original = [torch.randn(rows, dtype=torch.float16, device="cuda") for _ in range(2)]
        page_bytes = library.c.kvrazor_cuda_store_page_bytes(self.store)
        self.packed = torch.zeros(self.pages * page_bytes, dtype=torch.uint8, device="cuda")
        jobs = torch.zeros((self.pages, 8), dtype=torch.int32, device="cuda")
        jobs[:, 0] = torch.arange(self.pages, device="cuda") * PAGE
        jobs[:, 1] = torch.randperm(self.pages, device="cuda")
        jobs[:, 2:4] = -1
        library.call("kvrazor_cuda_store_seal", self.store, *map(pointer, original), pointer(self.packed), pointer(jobs), self.pages, stream_pointer())
        torch.cuda.synchronize()
        self.back = torch.zeros((self.pages, 4), dtype=torch.int32, device="cuda")
        self.back[:, 0] = jobs[:, 1]
        self.back[:, 1] = jobs[:, 0]
        self.back[:, 2] = -1
        self.row_page = torch.randn((args.kv_heads, 2, PAGE, args.head_dim), device="cuda").half()
        self.sinks = torch.randn((args.kv_heads, 2, SINK_ROWS, args.head_dim), device="cuda").half()
        self.table = torch.cat([jobs[:, 1], torch.full((1,), -1, dtype=torch.int32, device="cuda")]).int()
        self.kv_len = torch.tensor([args.context + args.residual], dtype=torch.int32, device="cuda")
        self.workspace = torch.empty(sizes.workspace_bytes, dtype=torch.uint8, device="cuda")

    def free(self):
        self.library.c.kvrazor_cuda_store_free(self.store)
        self.library.c.kvrazor_cuda_prefill_free(self.plan)

    def dequantize(self, k, v):
        self.library.call("kvrazor_cuda_store_dequantize", self.store, pointer(self.packed), pointer(k), pointer(v), ctypes.c_int64(0),
                          ctypes.c_int64(0), pointer(self.back), self.pages, stream_pointer())

    def rows(self, chunk):
        """Keys and values [tokens, heads, D] in 16 bits: pages, sinks, residual window, chunk."""
        context, residual = self.args.context, self.args.residual
        sides = [torch.empty((context + residual + c.shape[0], *c.shape[1:]), dtype=torch.float16, device="cuda") for c in chunk]
        self.dequantize(*sides)
        for side, rows in enumerate(sides):
            rows[:self.sink_tokens] = unswizzle(self.sinks)[:, side, :self.sink_tokens].transpose(0, 1)
            rows[context:context + residual] = unswizzle(self.row_page)[:, side, :residual].transpose(0, 1)
            rows[context + residual:] = chunk[side]
        return sides

    def attend(self, q, chunk, out, new_begin):
        arrays = Arrays(pointer(self.packed), pointer(self.row_page), pointer(self.sinks), pointer(self.table), pointer(self.kv_len),
                        pointer(new_begin), pointer(q), pointer(chunk[0]), pointer(chunk[1]), pointer(out), pointer(self.workspace), 1,
                        stream_pointer())
        self.library.call("kvrazor_cuda_prefill_run", self.plan, ctypes.byref(arrays))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", required=True, type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, help="folder for <gpu>/prefill_vs_bf16.json")
    parser.add_argument("--recipes", nargs="+", default=["razor-2", "razor-3", "oscar", "oscar:k4g32,v4g32"])
    parser.add_argument("--chunks", default="64,512,2048", help="new tokens")
    parser.add_argument("--context", type=int, default=32768, help="packed tokens, a multiple of 128")
    parser.add_argument("--residual", type=int, default=64, help="tokens in 16 bits behind them, up to 128")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--qo-heads", type=int, default=32)
    parser.add_argument("--bf16", type=int, default=1, help="queries, chunk and output in bf16")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("prefill_vs_bf16: no CUDA device on this machine, nothing was measured")
        return 0
    torch.manual_seed(7)
    gpu = torch.cuda.get_device_name()
    library = Library(args.library)  # bench/backends/cuda/store_c_abi.h, prefill_c_abi.h
    library.c.kvrazor_cuda_store_page_bytes.restype = ctypes.c_int64
    library.c.kvrazor_cuda_prefill_explain.restype = ctypes.c_char_p
    chunks = list(map(int, args.chunks.split(",")))
    dtype = torch.bfloat16 if args.bf16 else torch.float16
    print(f"{gpu}, torch {torch.__version__}, {args.context} packed tokens and {args.residual} in 16 bits, {args.qo_heads} query and "
          f"{args.kv_heads} kv heads, head_dim {args.head_dim}")
    bf16 = {new: baselines(args, new) for new in chunks}
    torch.cuda.empty_cache()
    records = []
    explained = False
    for recipe in args.recipes:
        cache = Packed(library, recipe, args, max(chunks))
        if not explained:
            print(cache.explanation)
            print(f"{'recipe':>20} {'new':>6} {'us':>9} {'pages back':>11} {'cudnn':>9} {'flash':>9} {'TFLOP/s':>8} {'tokens/s of bf16':>17}")
            explained = True
        for new in chunks:
            q = torch.randn((new, args.qo_heads, args.head_dim), dtype=dtype, device="cuda")
            chunk = [torch.randn((new, args.kv_heads, args.head_dim), dtype=dtype, device="cuda") for _ in range(2)]
            out = torch.full_like(q, float("nan"))
            new_begin = torch.tensor([0, new], dtype=torch.int32, device="cuda")
            us, spread = time_graph([lambda: cache.attend(q, chunk, out, new_begin)] * REPEATS)
            k, v = cache.rows(chunk)
            alone, _ = time_graph([lambda: cache.dequantize(k, v)] * REPEATS)
            k, v = cache.rows(chunk)
            want = flash(heads_first(q.half()), heads_first(k), heads_first(v))[0].transpose(0, 1).float()
            error = ((out.float() - want).norm() / want.norm()).item()
            if not error < 5e-3:
                raise RuntimeError(f"{recipe}, {new} new tokens: {error:.4f} off the attention over the same rows")
            name = min(bf16[new], key=bf16[new].get)
            best = bf16[new][name]
            length = args.context + args.residual
            flops = 4 * args.head_dim * args.qo_heads * (new * length + new * (new + 1) // 2)
            records.append({"recipe": recipe, "new_tokens": new, "context": args.context, "residual_tokens": args.residual, "us": round(us, 1),
                            "spread": round(spread, 4), "dequantize_us": round(alone, 1), "best_bf16_us": round(best, 1), "best_bf16_name": name,
                            "bf16_us": {n: round(t, 1) for n, t in bf16[new].items()}, "ratio": round(best / us, 3),
                            "tflops": round(flops / us * 1e-6, 1), "relative_l2_to_f16_flash": round(error, 6)})
            print(f"{recipe:>20} {new:>6} {us:>9.1f} {alone:>11.1f} {bf16[new].get('cudnn', 0):>9.1f} {bf16[new].get('flash', 0):>9.1f} "
                  f"{flops / us * 1e-6:>8.1f} {best / us:>17.2f}", flush=True)
        cache.free()
        del cache
        torch.cuda.empty_cache()
    if args.out:
        folder = args.out / gpu.lower().replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True).stdout.strip()
        (folder / "prefill_vs_bf16.json").write_text(json.dumps(
            {"gpu": gpu, "torch": torch.__version__, "driver": driver, "head_dim": args.head_dim, "kv_heads": args.kv_heads,
             "qo_heads": args.qo_heads, "bf16_in_and_out": bool(args.bf16), "results": records}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
