#!/usr/bin/env python3
"""Decode attention over a packed cache against the best BF16 attention, in the same process on the same GPU.

  python3 bench/attend_vs_bf16.py --library build/cuda/bin/libkvrazor_cuda_c.so --out bench/results [--recipes razor-2 oscar:k4g32,v4g32]

Baselines: torch scaled_dot_product_attention with the cuDNN and the FlashAttention backend, enable_gqa, the better of the two. Every
time is the median of graph replays; a graph runs through several caches so that the L2 cache is cold. Ours includes the rotation of
the query, sinks, and a residual window in 16 bits holding --residual tokens; the page table is random.
"""

import argparse
import ctypes
import itertools
import json
import pathlib
import subprocess
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from cuda_timing import Library, pointer, stream_pointer, time_graph

PAGE = 128
SHAPES = [(1, 1024), (1, 4096), (1, 16384), (1, 32768), (1, 131072), (8, 32768), (32, 32768), (64, 4096), (128, 4096)]


class Spec(ctypes.Structure):
    _fields_ = [("recipe", ctypes.c_char_p)] + [
        (n, ctypes.c_int32) for n in ("head_dim", "num_kv_heads", "num_qo_heads", "max_batch_size", "max_pages", "ring_stages", "programmatic_launch")
    ] + [("softmax_scale", ctypes.c_float)]


class Arrays(ctypes.Structure):
    _fields_ = [(n, ctypes.c_void_p) for n in ("packed_pages", "row_pages", "sink_rows", "page_table", "kv_len", "row_start", "q", "out",
                                               "lse", "workspace")] + [("batch_size", ctypes.c_int32), ("stream", ctypes.c_void_p)]


class Sizes(ctypes.Structure):
    _fields_ = [(n, ctypes.c_int64) for n in ("page_bytes", "row_page_bytes", "sink_bytes", "workspace_bytes")] + [("sink_tokens", ctypes.c_int32)]


def read_bandwidth():
    """Bytes per second of summing 4 GiB: the roof of a kernel that only reads."""
    x = torch.ones(1 << 30, dtype=torch.int32, device="cuda")
    best = 0.0
    for _ in range(6):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        torch.max(x)
        end.record()
        end.synchronize()
        best = max(best, x.numel() * 4 / begin.elapsed_time(end) * 1000)
    return best


class Bf16:
    """SDPA over contiguous BF16 caches."""

    def __init__(self, args, batch, context):
        one = 4 * batch * context * args.kv_heads * args.head_dim
        self.copies = max(1, min(8, (args.cold_bytes + one - 1) // one))
        shape = (batch, args.kv_heads, context, args.head_dim)
        self.caches = [tuple(torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(2)) for _ in range(self.copies)]
        self.q = torch.randn((batch, args.qo_heads, 1, args.head_dim), dtype=torch.bfloat16, device="cuda")

    def time(self, backend):
        def step(cache):
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(self.q, *cache, enable_gqa=True)

        return time_graph([lambda c=c: step(c) for c in self.caches for _ in range(1)])

    def best(self):
        results = {}
        for name, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION), ("flash", SDPBackend.FLASH_ATTENTION)):
            try:
                results[name] = self.time(backend)[0]
            except RuntimeError as e:
                print(f"  {name}: {str(e).splitlines()[0]}", file=sys.stderr)
        name = min(results, key=results.get)
        return results[name], name, results


class Packed:
    """Our kernel over a pool of packed pages, row pages and sinks."""

    def __init__(self, library, args, recipe, max_batch, max_context, stages, programmatic):
        self.library, self.args = library, args
        self.plan = ctypes.c_void_p()
        self.max_pages = (max_context + PAGE - 1) // PAGE
        spec = Spec(recipe.encode(), args.head_dim, args.kv_heads, args.qo_heads, max_batch, self.max_pages, stages, programmatic,
                    args.head_dim ** -0.5)
        library.call("kvrazor_cuda_attend_plan", ctypes.byref(spec), ctypes.byref(self.plan))
        self.sizes = Sizes()
        library.c.kvrazor_cuda_attend_sizes(self.plan, ctypes.byref(self.sizes))
        self.explanation = library.c.kvrazor_cuda_attend_explain(self.plan).decode()
        self.workspace = torch.empty(self.sizes.workspace_bytes, dtype=torch.uint8, device="cuda")
        library.call("kvrazor_cuda_attend_init", self.plan, pointer(self.workspace), stream_pointer())
        torch.cuda.synchronize()

    def make_pool(self, num_pages, num_distinct=4):
        shape = (PAGE, self.args.kv_heads, self.args.head_dim)
        pages = []
        for _ in range(num_distinct):
            k, v = (torch.randn(shape, dtype=torch.float16) for _ in range(2))
            packed = torch.empty(self.sizes.page_bytes, dtype=torch.uint8)
            self.library.call("kvrazor_cuda_make_page", self.plan, pointer(k), pointer(v), pointer(packed))
            pages.append(packed)
        self.pool = torch.stack(pages).cuda().repeat((num_pages + num_distinct - 1) // num_distinct, 1)[:num_pages].contiguous()

    def time(self, batch, context, residual):
        """Median, spread, bytes read."""
        args = self.args
        sealed_tokens = (context - residual) // PAGE * PAGE
        sealed, rows = sealed_tokens // PAGE, context - sealed_tokens
        row_pages = (rows + PAGE - 1) // PAGE
        row_bytes = rows * args.kv_heads * args.head_dim * 4
        read = batch * (sealed * self.sizes.page_bytes + row_bytes + self.sizes.sink_tokens * args.kv_heads * args.head_dim * 4)
        traffic = read + batch * args.qo_heads * args.head_dim * 4
        copies = max(2, min(64, args.cold_bytes // max(1, read), self.pool.shape[0] // max(1, batch * sealed)))
        rows_pool = torch.randn((copies * batch * row_pages, self.sizes.row_page_bytes // 2), device="cuda").half()
        sinks = torch.randn((copies * batch, max(1, self.sizes.sink_bytes // 2)), device="cuda").half()
        q = torch.randn((batch, args.qo_heads, args.head_dim), device="cuda").half()
        out = torch.empty_like(q)
        lens = torch.full((batch,), context, dtype=torch.int32, device="cuda")
        starts = torch.full((batch,), sealed_tokens, dtype=torch.int32, device="cuda")
        order = torch.randperm(self.pool.shape[0], device="cuda")
        tables, steps = [], []
        for c in range(copies):
            table = torch.zeros((batch, self.max_pages), dtype=torch.int32, device="cuda")
            ids = torch.arange(c * batch * sealed, (c + 1) * batch * sealed, device="cuda") % self.pool.shape[0]
            table[:, :sealed] = order[ids].view(batch, sealed).int()
            row_ids = torch.arange(c * batch * row_pages, (c + 1) * batch * row_pages, device="cuda").view(batch, row_pages)
            table[:, sealed:sealed + row_pages] = ~row_ids.int()
            tables.append(table)
            arrays = Arrays(pointer(self.pool), pointer(rows_pool), pointer(sinks[c * batch:]), pointer(table), pointer(lens), pointer(starts),
                            pointer(q), pointer(out), None, pointer(self.workspace), batch, None)

            def step(a=arrays):
                a.stream = stream_pointer()
                self.library.call("kvrazor_cuda_attend_run", self.plan, ctypes.byref(a))

            steps.append(step)
        median, spread = time_graph(steps)
        if not torch.isfinite(out).all():
            raise RuntimeError(f"{batch} x {context}: the result is not finite")
        return median, spread, traffic


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", required=True, type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, help="folder for <gpu>/attend_vs_bf16.json")
    parser.add_argument("--recipes", nargs="+", default=["razor-2", "razor-3", "oscar"])
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--qo-heads", type=int, default=32)
    parser.add_argument("--residual", type=int, default=64, help="tokens in 16 bits at the end")
    parser.add_argument("--cold-bytes", type=int, default=600_000_000, help="read between two uses of the same cache")
    parser.add_argument("--stages", default="0", help="pages in flight to try, comma separated; 0: what the plan chooses")
    parser.add_argument("--programmatic", default="1", help="programmatic dependent launch to try: 0, 1 or 0,1")
    parser.add_argument("--shapes", help="like 1x16384,8x32768")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("attend_vs_bf16: no CUDA device on this machine, nothing was measured")
        return 0

    torch.manual_seed(7)
    shapes = [tuple(map(int, s.split("x"))) for s in args.shapes.split(",")] if args.shapes else SHAPES
    gpu = torch.cuda.get_device_name()
    roof = read_bandwidth()
    print(f"{gpu}, torch {torch.__version__}, read {roof / 1e12:.2f} TB/s, {args.qo_heads} query and {args.kv_heads} kv heads, head_dim "
          f"{args.head_dim}, {args.residual} tokens in 16 bits")
    library = Library(args.library)  # bench/backends/cuda/attend_c_abi.h
    library.c.kvrazor_cuda_attend_explain.restype = ctypes.c_char_p
    baselines = {}
    for batch, context in shapes:
        baselines[batch, context] = Bf16(args, batch, context).best()
        torch.cuda.empty_cache()

    records = []
    for recipe in args.recipes:
        for stages, programmatic in itertools.product(map(int, args.stages.split(",")), map(int, args.programmatic.split(","))):
            packed = Packed(library, args, recipe, max(b for b, _ in shapes), max(c for _, c in shapes) + PAGE, stages, programmatic)
            packed.make_pool(max(8192, max(b * (c // PAGE) for b, c in shapes)))
            print(packed.explanation)
            print(f"{'recipe':>10} {'batch':>6} {'context':>8} {'us':>8} {'cudnn':>8} {'flash':>8} {'ratio':>6} {'TB/s':>6} {'of read':>8}")
            for batch, context in shapes:
                us, spread, traffic = packed.time(batch, context + args.residual, args.residual)
                best, name, both = baselines[batch, context]
                share = traffic / (us * 1e-6) / roof
                records.append({"recipe": recipe, "batch": batch, "context": context, "us": round(us, 2), "spread": round(spread, 4),
                                "best_bf16_us": round(best, 2), "best_bf16_name": name, "ratio": round(best / us, 3), "bytes": traffic,
                                "share_of_read": round(share, 3), "residual_tokens": args.residual, "ring_stages": stages,
                                "programmatic_launch": programmatic})
                print(f"{recipe:>10} {batch:>6} {context:>8} {us:>8.1f} {both.get('cudnn', 0):>8.1f} {both.get('flash', 0):>8.1f} "
                      f"{best / us:>6.2f} {traffic / us * 1e-6:>6.2f} {share:>8.2f}", flush=True)
            library.c.kvrazor_cuda_attend_free(packed.plan)
            del packed
            torch.cuda.empty_cache()
    if args.out:
        folder = args.out / gpu.lower().replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        driver = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True).stdout.strip()
        (folder / "attend_vs_bf16.json").write_text(json.dumps(
            {"gpu": gpu, "torch": torch.__version__, "driver": driver, "read_bytes_per_s": roof, "head_dim": args.head_dim,
             "kv_heads": args.kv_heads, "qo_heads": args.qo_heads, "results": records}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
