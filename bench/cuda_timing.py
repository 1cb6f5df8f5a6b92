"""What the GPU benchmarks share: calls into our C interfaces, and times of captured CUDA graphs."""

import ctypes
import statistics

import torch


class Library:
    """A C interface of bench/backends/cuda, whose functions return a status and fill an error text."""

    def __init__(self, path):
        self.c = ctypes.CDLL(str(path))

    def call(self, name, *args):
        error = ctypes.create_string_buffer(1024)
        if getattr(self.c, name)(*args, error, len(error)) != 0:
            raise RuntimeError(error.value.decode())


def stream_pointer():
    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)


def pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr() if tensor is not None else 0)


def time_graph(steps, replays=13, warm=3):
    """Median and spread in microseconds of one of `steps`, captured one after another into a graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for step in steps[:2]:
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for step in steps:
            step()
    times = []
    for i in range(replays):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        if i >= warm:
            times.append(begin.elapsed_time(end) * 1000 / len(steps))
    median = statistics.median(times)
    return median, statistics.median(abs(t - median) for t in times) / median
