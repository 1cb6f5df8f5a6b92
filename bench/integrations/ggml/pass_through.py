#!/usr/bin/env python3
"""What the plug-in costs where it does nothing: CPU seconds of llama-bench with and without it, in turns.

    bench/integrations/ggml/pass_through.py BUILD MODEL [--rounds 12] [--json FILE]

With attention as single operations (-fa 0) no layer is packed, so every node is passed on to ggml. With flash attention a few tokens
into an empty cache, the packed path runs too, but reads next to nothing: what is left is the cost of cutting the graph into ranges.
One thread: waiting threads would burn CPU seconds of their own.
"""
import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys


def cpu_seconds(build, model, flash_attention, plug_in):
    environment = dict(os.environ, LD_LIBRARY_PATH=f"{build}/bin")
    if plug_in:
        environment.update(LD_PRELOAD=f"{build}/bin/libggml-kvrazor-preload.so", KVRAZOR_RECIPE="razor-2")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [f"{build}/bin/llama-bench", "-m", model, "-fa", str(flash_attention), "-p", "0", "-n", "64", "-r", "4", "-t", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"pass_through: {' '.join(command)} failed:\n{done.stderr}")
    if ("attached to device" in done.stderr) != plug_in:
        sys.exit(f"pass_through: the plug-in is {'not ' if plug_in else ''}attached:\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("build")
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json")
    arguments = parser.parse_args()
    build = os.path.abspath(arguments.build)
    results = []
    for flash_attention in 0, 1:
        seconds = {False: [], True: []}
        for round_number in range(arguments.rounds):
            for plug_in in sorted(seconds, reverse=round_number % 2 == 1):
                seconds[plug_in].append(cpu_seconds(build, arguments.model, flash_attention, plug_in))
        # Neighbours in time are compared: the machine's speed drifts.
        ratios = [with_it / without for with_it, without in zip(seconds[True], seconds[False])]
        results.append({"flash_attention": flash_attention, "cpu_s_stock": seconds[False], "cpu_s_plug_in": seconds[True],
                        "median_ratio": statistics.median(ratios),
                        "ratio_of_medians": statistics.median(seconds[True]) / statistics.median(seconds[False])})
        print(f"-fa {flash_attention}: stock {statistics.median(seconds[False]):.2f} s, plug-in {statistics.median(seconds[True]):.2f} s, "
              f"median ratio {results[-1]['median_ratio']:.3f}")
    if arguments.json:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=os.path.dirname(__file__))
        record = {"benchmark": "pass_through", "command": "bench/integrations/ggml/pass_through.py " + " ".join(sys.argv[1:]),
                  "commit": commit.stdout.strip(), "machine": {"arch": platform.machine(), "hardware_threads": os.cpu_count()},
                  "results": results}
        with open(arguments.json, "w") as file:
            json.dump(record, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
