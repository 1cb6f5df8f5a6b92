# Everything from a fresh clone in one command; each can be repeated and then only does what is left to do.
.DEFAULT_GOAL := help
.NOTPARALLEL:
SHELL := /bin/bash

JOBS ?= $(shell nproc)
MODEL ?= build/_deps/models/SmolLM2-135M-Instruct.Q4_1.gguf
TEXT ?= build/demo/text.txt
DEMO_OUT ?= build/demo
PREFIX ?= /usr/local
# 8192 shows more and takes four times as long, nearly all of it in the quantized caches of llama.cpp that it is compared with.
DEMO_CONTEXT ?= 4096
# A long text that every Debian machine has; elsewhere this project's own documents.
TEXT_PARTS := $(wildcard /usr/share/common-licenses/GPL-3 /usr/share/common-licenses/GFDL-1.3)
ifneq ($(words $(TEXT_PARTS)),2)
TEXT_PARTS := README.md CONTRIBUTING.md $(sort $(wildcard docs/*.md)) LICENSE
endif

CTEST := ctest --no-tests=error -j $(JOBS)
CUDA_TARGETS := cuda_page_convert_test cuda_attend_test cuda_prefill_test cuda_store_test kvrazor_cuda_c kvrazor_cuda_store_c cuda_store_bench
CXX_FILES = $(wildcard $(shell git ls-files -co --exclude-standard -- '*.h' '*.cc' '*.c'))

.PHONY: help demo install test test-asan test-tsan test-release test-cuda build build-llama bench format check clean distclean bootstrap

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: bootstrap build/release/build.ninja build/demo/text.txt ## a real model reads a long text with every cache; table here, report in build/demo
	cmake --build build/release --target kvrazor_cli -j $(JOBS)
	build/release/bin/kvrazor compare -m "$(MODEL)" -f "$(TEXT)" -c $(DEMO_CONTEXT) --require --out "$(DEMO_OUT)"

install: build ## program, plug-in and library into PREFIX (default /usr/local)
	cmake --install build/release --prefix "$(PREFIX)"

test: bootstrap build test-asan test-tsan test-release ## everything: builds, tests, library and plug-in under sanitizers, style

test-release: build ## the tests of the optimized build alone
	$(CTEST) --preset release

test-asan: build-llama build/asan/build.ninja ## library and plug-in under AddressSanitizer and UndefinedBehaviorSanitizer
	cmake --build build/asan -j $(JOBS)
	$(CTEST) --preset asan

test-tsan: build-llama build/tsan/build.ninja ## library and plug-in under ThreadSanitizer
	cmake --build build/tsan -j $(JOBS)
	$(CTEST) --preset tsan

# A GPU machine builds everything and measures: tools/gpu_check.sh. Here one head dimension and card show that the kernels compile.
test-cuda: bootstrap ## the CUDA backend, where there is a compiler for it: built for one card; its tests are skipped without a GPU
	@export PATH="$$PATH:/usr/local/cuda/bin"; if ! command -v nvcc >/dev/null; then \
	  echo "make test-cuda: no CUDA compiler (nvcc) on this machine: the CUDA backend is neither compiled nor tested"; \
	else \
	  set -e; cmake -B build/cuda-try --preset cuda -DKVRAZOR_CUDA_HEAD_DIMS=128 "-DKVRAZOR_CUDA_FORMS=razor_k2;affine_k2v2" \
	    -DKVRAZOR_CUDA_PACKED_ARCHITECTURES=90a-real -DKVRAZOR_CUDA_PLAIN_ARCHITECTURES=90-real; \
	  cmake --build build/cuda-try -j $(JOBS) --target $(CUDA_TARGETS); \
	  $(CTEST) --test-dir build/cuda-try -L cuda; \
	  skipped=$$(grep -c 'no CUDA device on this machine' build/cuda-try/Testing/Temporary/LastTest.log || true); \
	  [[ $$skipped == 0 ]] || echo "make test-cuda: compiled; $$skipped tests skipped: no CUDA device on this machine (tools/gpu_check.sh runs them on one)"; \
	fi

build: bootstrap build/release/build.ninja ## library, plug-in, programs, tests and benchmarks in build/release
	cmake --build build/release -j $(JOBS)

build-llama: bootstrap build/release/build.ninja # what the sanitizers' builds take from the optimized one
	cmake --build build/release --target llama llama-common -j $(JOBS)

bench: build ## benchmarks of the CPU kernels, next to ggml's own
	@for program in build/release/bin/*_bench; do echo "$$program"; "$$program" || exit 1; done

format: ## clang-format on every source file
	@command -v clang-format >/dev/null || { echo "make format: clang-format is missing (apt-get install clang-format)" >&2; exit 1; }
	@clang-format -i $(CXX_FILES)

check: ## layers, headers, documents, formatting
	tools/check_layers
	tools/check_headers
	tools/check_docs
	@command -v clang-format >/dev/null || { echo "make check: clang-format is missing (apt-get install clang-format)" >&2; exit 1; }
	@clang-format --dry-run --Werror $(CXX_FILES)

clean: ## what was built; the downloads stay
	find build -mindepth 1 -maxdepth 1 ! -name _deps -exec rm -rf {} + 2>/dev/null || true

distclean: ## the whole build folder
	rm -rf build

bootstrap: ## packages, llama.cpp's sources, the model, the server's web page
	@tools/bootstrap

build/demo/text.txt: $(TEXT_PARTS)
	@mkdir -p $(@D)
	cat $(TEXT_PARTS) > $@.tmp
	@mv $@.tmp $@

build/%/build.ninja: CMakePresets.json
	cmake --preset $*
	@touch $@
