# The two commands are `make run` and `make test`; everything else is for contributors.
# PYTHON=python3.12 chooses the interpreter that makes the virtual environment.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --require-virtualenv

.PHONY: run test test-browser test-compose lint bench chaos soak overload mutants pins clean

run: $(VENV)/run.done
	@exec $(BIN)/chronicle up $(ARGS)

test: $(VENV)/dev.done
	$(BIN)/pytest -n auto --dist worksteal $(ARGS)

# The page in Debian's Chromium (apt-get install chromium).
test-browser: $(VENV)/browser.done
	$(BIN)/pytest tests/browser $(ARGS)

# compose.yml for real, where there is Docker: every service restarted and killed, then the acceptance suite against it.
test-compose: $(VENV)/dev.done
	$(BIN)/pytest tests/compose $(ARGS)

lint: $(VENV)/dev.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Measures everything, for about an hour; make bench ARGS='--only bulk,single --runs 1' measures a part.
bench: $(VENV)/bench.done
	@$(BIN)/python -m loadtest $(ARGS)

# Rounds of faults under load, each replayable from its seed: make chaos ARGS='--seed 7 --rounds 20 --seconds 12'
chaos: $(VENV)/dev.done
	@$(BIN)/python -m tests.chaos $(ARGS)

# 20 minutes of faults at half of capacity; what is held must end where it began: make soak ARGS='--seconds 240'
soak: $(VENV)/dev.done
	@$(BIN)/python -m tests.chaos.soak $(ARGS)

# A minute of three times what it can take; ARGS='--events 1000' for larger requests.
overload: $(VENV)/dev.done
	@$(BIN)/python -m tests.chaos.overload $(ARGS)

# Breaks one rule at a time and runs the test that must notice; ARGS chooses mutants by a word.
mutants: $(VENV)/dev.done
	@$(BIN)/python -m tests.mutants $(ARGS)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "ChronicleWeaver needs Python 3.11 or newer on PATH; name another one with: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "making $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment: install its venv module (Debian: python3-venv)" >&2; exit 1; }

$(VENV)/run.done: requirements/run.txt pyproject.toml | $(BIN)/python
	@echo "installing pinned dependencies"
	@$(PIP) --require-hashes -r requirements/run.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/dev.done: requirements/dev.txt $(VENV)/run.done
	@$(PIP) --require-hashes -r requirements/dev.txt
	@touch $@

$(VENV)/bench.done: requirements/bench.txt $(VENV)/run.done
	@$(PIP) --require-hashes -r requirements/bench.txt
	@touch $@

$(VENV)/browser.done: requirements/browser.txt $(VENV)/dev.done
	@$(PIP) --require-hashes -r requirements/browser.txt
	@touch $@

# New pins from the ranges in pyproject.toml.
pins:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		--extra embedded --extra build -o requirements/run.txt pyproject.toml
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		--extra embedded --extra build --extra test --extra lint -c requirements/run.txt -o requirements/dev.txt pyproject.toml
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		--extra embedded --extra build --extra bench -c requirements/run.txt -o requirements/bench.txt pyproject.toml
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		--extra embedded --extra build --extra browser -c requirements/dev.txt -o requirements/browser.txt pyproject.toml
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		-c requirements/run.txt -o requirements/service.txt pyproject.toml
	echo hatchling | uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		-c requirements/run.txt -o requirements/build.txt -

clean:
	rm -rf $(VENV)
