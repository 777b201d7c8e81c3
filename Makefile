# The whole set-up is `make quickstart` or `make test`; both build their environment in .venv first.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin
WORKERS ?= 2

.PHONY: quickstart moe reproduce-quickstart test test-slow test-aot lint parity families scale benchmarks clean

$(VENV)/run: pyproject.toml
	test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --upgrade pip
	$(RUN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/dev: $(VENV)/run
	$(RUN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

# Torch's CPU build: the exact version keeps pip from the CUDA one.
$(VENV)/parity: $(VENV)/dev
	$(RUN)/python -m pip install --quiet torch==2.13.0
	$(RUN)/python -m pip install --quiet --editable '.[dev,parity]'
	touch $@

QUICK := runs/quickstart
LONG := runs/quickstart-long
PROMPTS := experiments/assets/e2e_nlg/prompts.jsonl

quickstart: $(VENV)/run  ## fine-tune the small real model under a curriculum and its controls
	$(RUN)/maktab sweep experiments/quickstart.py --workdir $(QUICK)
	$(RUN)/maktab report $(QUICK) --control random --out $(QUICK)/report
	rm -rf $(QUICK)/best
	$(RUN)/maktab export $(QUICK) --best-by slots/slot_accuracy --to $(QUICK)/best
	@echo; echo "before fine-tuning:"
	$(RUN)/maktab generate experiments/assets/stories260k $(PROMPTS) --max-tokens 64
	@echo; echo "after fine-tuning (the best run):"
	$(RUN)/maktab generate $(QUICK)/best $(PROMPTS) --max-tokens 64

MOE := runs/moe
moe: $(VENV)/run  ## mixtures of experts: what balances a router, and what fine-tuning does to it
	$(RUN)/maktab sweep experiments/moe_balance.py --workdir $(MOE)/balance
	$(RUN)/maktab report $(MOE)/balance --control "no balance" --out $(MOE)/balance/report
	rm -rf $(MOE)/upcycled $(MOE)/base
	$(RUN)/maktab upcycle experiments/assets/stories260k --experts 8 --per-token 2 --router sigmoid --to $(MOE)/upcycled
	$(RUN)/maktab sweep experiments/moe_routers.py --generator base --workdir $(MOE)/pretraining
	$(RUN)/maktab export $(MOE)/pretraining/base/seed-0 --to $(MOE)/base
	$(RUN)/maktab sweep experiments/moe_routers.py --workdir $(MOE)/routers
	$(RUN)/maktab report $(MOE)/routers --control frozen --out $(MOE)/routers/report

reproduce-quickstart: $(VENV)/run  ## the long version: 400 steps, 5 seeds
	$(RUN)/maktab sweep experiments/quickstart.py --generator long --workdir $(LONG)
	$(RUN)/maktab report $(LONG) --control random --out $(LONG)/report

test: $(VENV)/dev  ## the default tests, without torch unless it is installed
	$(RUN)/python -m pytest -n $(WORKERS) --dist loadfile

test-slow: $(VENV)/parity  ## minutes: kills at random moments, larger checkpoints
	$(RUN)/python -m pytest -m slow --ignore tests/aot

test-aot: $(VENV)/dev  ## compile for TPU and CUDA without either
	$(RUN)/python -m pip install --quiet 'jax[tpu]' jax-cuda13-plugin jax-cuda13-pjrt
	$(RUN)/python -m pytest -m slow tests/aot

parity: $(VENV)/parity  ## live against torch, transformers and peft
	$(RUN)/python -m pytest -n $(WORKERS) tests/parity

families: $(VENV)/run  ## docs/families.md from the code
	$(RUN)/python -m research.huggingface.family_table > docs/families.md

scale: $(VENV)/run  ## docs/scale.md: plans for TPUs and GPUs that are not here; hours of compiling, or only what is new
	$(RUN)/python -m pip install --quiet 'jax[tpu]' jax-cuda13-plugin jax-cuda13-pjrt
	$(RUN)/python -m benchmarks.scaling
	$(RUN)/python -m benchmarks.scaling_page

lint: $(VENV)/dev
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/lint-imports
	$(RUN)/pyright

benchmarks: $(VENV)/parity
	$(RUN)/python -m benchmarks.step
	$(RUN)/python -m benchmarks.decode
	$(RUN)/python -m benchmarks.score
	$(RUN)/python -m benchmarks.refill
	$(RUN)/python -m benchmarks.refresh

clean:
	rm -rf $(VENV) build dist *.egg-info runs
