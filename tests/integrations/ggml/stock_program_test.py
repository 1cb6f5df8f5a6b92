"""A stock llama.cpp program gets a packed cache through GGML_BACKEND_PATH, without a change to its command line."""

import os
import re
import subprocess
import sys

SKIPPED = 77  # ctest's SKIP_RETURN_CODE


def run(program, model, text, **settings):
    environment = dict(os.environ, KVRAZOR_STATS="1", **settings)
    command = [program, "-m", model, "-f", text, "-c", "512", "-b", "512", "--chunks", "1", "-t", "1"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)


def by_path(library):
    """Without dynamic backends ggml reads GGML_BACKEND_PATH only when a device is named; this names the one that is used anyway."""
    return {"GGML_BACKEND_PATH": library, "LLAMA_ARG_OVERRIDE_TENSOR": "^$=CPU"}


def perplexity(result):
    match = re.search(r"Final estimate: PPL = ([0-9.]+)", result.stdout + result.stderr)
    assert match, result.stdout[-2000:] + result.stderr[-2000:]
    return float(match.group(1))


def main():
    program, model, text, library, preload = sys.argv[1:6]
    if not os.path.exists(model):
        print(f"no model in {model}")
        return SKIPPED
    stock = perplexity(run(program, model, text))
    result = run(program, model, text, KVRAZOR_RECIPE="razor-2", KVRAZOR_REQUIRE="1", **by_path(library))
    packed = perplexity(result)
    stats = re.search(r"kvrazor: graphs \d+ .*sealed (\d+)", result.stderr)
    assert stats and int(stats.group(1)) > 0, "nothing was sealed:\n" + result.stderr[-2000:]
    assert stock * 0.97 < packed < stock * 1.10, f"perplexity {packed} with razor-2, {stock} with llama.cpp's own cache"

    preloaded = perplexity(run(program, model, text, KVRAZOR_RECIPE="razor-2", LD_PRELOAD=preload))
    assert preloaded == packed, f"perplexity {preloaded} with LD_PRELOAD, {packed} with GGML_BACKEND_PATH"
    subprocess.run(["true"], env=dict(os.environ, LD_PRELOAD=preload), check=True)  # a program without ggml

    refused = run(program, model, text, KVRAZOR_RECIPE="oskar", KVRAZOR_REQUIRE="1", **by_path(library))
    assert refused.returncode != 0, "a bad recipe was accepted although it was required"
    assert "oskar" in refused.stdout + refused.stderr, "the message does not name what was wrong"

    # Without the requirement the program goes on with llama.cpp's own cache: said at start and again for the cache itself.
    unpacked = run(program, model, text, KVRAZOR_RECIPE="oskar", **by_path(library))
    assert perplexity(unpacked) == stock, "a bad recipe changed what is computed"
    for words in ("oskar", "NOTHING IS PACKED", "NOT PACKED: this KV cache is llama.cpp's own"):
        assert words in unpacked.stderr, f"'{words}' is missing in:\n{unpacked.stderr[-2000:]}"
    assert re.search(r"kvrazor: graphs \d+ .*sealed 0 ", unpacked.stderr), "something was sealed with a recipe that cannot be read"
    print(f"perplexity {stock} (llama.cpp's own cache), {packed} (razor-2)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
