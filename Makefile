# The two commands a newcomer needs: `make up` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
ENV ?= sandbox
LIMIT ?=
PY := .venv/bin/python
DEPLOYS := $(PY) -m deploys
# Set where tests run, it has each of some thousand Python processes compile the sources anew.
unexport PYTHONDONTWRITEBYTECODE
TARGET = $(ENV) $(addprefix --limit ,$(LIMIT))

.PHONY: api-fuzz backup backup-list backup-status backup-verify help up down status plan apply verify secrets test lint types unit coverage properties contract fleet fleet-faults failovers kills chaos drain flood clients bench bench-gateway bench-edge bench-streams bench-observability bench-logs boards release-calls logs-away fuzz mutation waf-regression tools lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-19s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  ENV=production chooses another inventory for plan, apply, verify, secrets and backup…;"
	@echo "  LIMIT='edge db1' restricts plan, apply and verify to groups or hosts."

up: .venv/ready ## Build the whole platform on this machine and make a first paid call
	@$(PY) -m deploys.sandbox.platform

down: .venv/ready ## Remove every host, network, volume and process that `make up` made
	@$(DEPLOYS) sandbox down

status: .venv/ready ## Show the sandbox's hosts
	@$(DEPLOYS) sandbox status

plan: .venv/ready ## What would change (python -m deploys plan ENV exits 0 clean, 2 drift, 1 error)
	@$(DEPLOYS) plan $(TARGET)

apply: .venv/ready ## Bring the fleet to what the repository says
	@$(DEPLOYS) apply $(TARGET)

verify: .venv/ready ## Run the launch checklist against the fleet
	@$(DEPLOYS) verify $(TARGET)

secrets: .venv/ready ## Generate the environment's missing secrets, encrypted
	@$(DEPLOYS) secrets $(ENV)

backup-status: .venv/ready ## The database's members, backups and WAL on one screen, and what to do next
	@$(PY) -m backups status $(ENV)

backup-list: .venv/ready ## The database's backups and archived WAL
	@$(PY) -m backups list $(ENV)

backup: .venv/ready ## Make a full backup of the database now, and check it
	@$(PY) -m backups backup $(ENV) --yes

backup-verify: .venv/ready ## Read the whole repository of backups again
	@$(PY) -m backups verify $(ENV)

# One after another: servers and clients have bounds of seconds of their own, which they miss beside a fleet of
# eleven hosts, and the fleet beside them.
test: .venv/ready tools ## Everything that CI runs: lint and types, unit tests, contract tests, the fleet from nothing
	@status=0; failed=""; for part in lint coverage contract fleet; do \
	  $(MAKE) --no-print-directory $$part || { status=$$?; failed="$$failed $$part"; }; done; \
	[ -z "$$failed" ] || echo "failed:$$failed"; exit $$status

lint: .venv/ready ## Style, formatting and strict types
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports --no-logo

unit: .venv/ready tools ## Tests without services (seconds), with fewer examples of what is generated
	@.venv/bin/pytest tests/unit -n 2 --dist worksteal --hypothesis-profile=quick --timeout 300

coverage: .venv/ready tools ## The unit tests as CI runs them, and which lines they run
	@.venv/bin/pytest tests/unit -n 2 --dist worksteal --hypothesis-profile=quick --cov --cov-report=term --timeout 300

properties: .venv/ready tools ## The unit tests with all examples of what is generated (four times as long)
	@.venv/bin/pytest tests/unit -n 2 --dist worksteal

# tests/contract/conftest.py says which files come first: the longest. They wait for half of their time, for limits
# of time and pauses to pass: four at once, with which none waits too long for its turn.
contract: .venv/ready tools ## Tests on a real PostgreSQL, Redis, nginx and Prometheus on loopback
	@.venv/bin/pytest tests/contract -n 4 --dist loadfile --no-loadscope-reorder --durations=15 --timeout 1200

fleet: .venv/ready tools ## The platform from nothing: up, drift, kill tests, down
	@.venv/bin/pytest tests/fleet -v --show-capture=no --durations=30

fleet-faults: .venv/ready tools ## The long matrix of faults, on the sandbox that `make up` built (some hours)
	@.venv/bin/pytest tests/faults -v --show-capture=no

failovers: .venv/ready ## Break the sandbox's database RUNS=20 times while a writer writes; a table of outages and losses
	@$(PY) -m tests.faults.failover_drill $(addprefix --runs ,$(RUNS))

kills: .venv/ready tools ## Kill what restores beside the fleet at ten moments each, and run it again
	@RELAY_KILLS=10 .venv/bin/pytest tests/contract/test_killed_commands.py

chaos: .venv/ready tools ## The long money drill: 100,000 calls while replicas and the primary are killed
	@$(PY) -m tests.contract.chaos

drain: .venv/ready tools ## On the sandbox that `make up` built: a node drained and returned beside 50 calls a second
	@RELAY_DRAIN_RATE=50 .venv/bin/pytest --noconftest tests/fleet/test_3_drain.py -v --show-capture=no

flood: .venv/ready tools ## On the sandbox that `make up` built: 5,000 calls a second of one key, and how long others' take
	@RELAY_FLOOD_TIMES=2 .venv/bin/pytest --noconftest -p tests.fleet.customers tests/fleet/test_3_edge.py -k flood -v -s

logs-away: .venv/ready tools ## The log store away for a minute, then for two: no line is lost
	@RELAY_LOGS_AWAY_SECONDS=120 .venv/bin/pytest tests/contract/test_logs.py -v -k away

fuzz: .venv/ready tools ## What a provider may send, through the relay: CASES=1000000 SEED=7; one again: SEED=7 CASE=5
	@$(PY) -m tests.contract.fuzz $(addprefix --cases ,$(CASES)) $(addprefix --seed ,$(SEED)) $(addprefix --case ,$(CASE))

api-fuzz: .venv/ready tools ## What the OpenAPI document allows and forbids, asked of a relay: CASES=200 of each operation
	@RELAY_API_CASES=$(or $(CASES),200) .venv/bin/pytest tests/contract/test_openapi.py

clients: .venv/ready tools build/clients/ready ## Claude Code, Codex, Gemini CLI and opencode do a task against each provider format
	@.venv/bin/pytest tests/clients -v

build/clients/ready: tests/clients/package.json tests/clients/package-lock.json
	@node -e 'process.exit(+(parseInt(process.versions.node) < 20))' || \
	  { echo "the clients need Node.js 20 or newer, with npm: install it from its vendor's packages"; exit 1; }
	@mkdir -p build/clients && cp tests/clients/package*.json build/clients
	@echo "installing the clients into build/clients (about 1.3 GB) ..."
	@npm install --no-save --prefix build/clients --no-audit --no-fund --loglevel=error
	@touch $@

bench: .venv/ready tools ## Print the ledger's speed as ratios taken in one run
	@$(PY) -m tests.bench.ledger_bench

bench-gateway: .venv/ready tools ## Print what a billed call costs beside nginx that passes it on, as ratios of one run
	@$(PY) -m tests.bench.gateway_bench

bench-edge: .venv/ready tools ## Print what the edge costs: CPU a request with and without the WAF, delay of events
	@$(PY) -m tests.bench.edge_bench

bench-streams: .venv/ready tools ## Print what 1,000 streams at once cost a relay on one core: memory, delay of events
	@$(PY) -m tests.bench.streams_bench

bench-observability: .venv/ready ## On the sandbox that `make up` built: what watching it costs, memory and CPU, SECONDS=300
	@$(PY) -m tests.bench.observability_bench --units $(addprefix --seconds ,$(SECONDS))

bench-logs: .venv/ready tools ## Print how long searches over ten million lines of logs take
	@$(PY) -m tests.bench.logs_bench

release-calls: .venv/ready tools ## Before a release: record what its relay asks of its database, which later migrations must keep
	@$(PY) -m tests.contract.calls

mutation: .venv/ready ## Change the code of money, failover and limits; fail on changes that no test notices
	@rm -rf mutants
	@nice .venv/bin/mutmut run --max-children 1
	@$(PY) -m tests.mutation.check

boards: .venv/ready ## Write the JSON of Grafana's boards, monitoring/dashboards/json
	@$(PY) -m monitoring.dashboards

tools: ## Install the programs that the tests run for real (needs root once)
	@tests/install-tools

lock: ## Pin the dependencies anew, with hashes and without addresses
	@for f in relay/requirements requirements; do \
	  .venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-annotate --no-header -c relay/requirements.txt $$f.in -o $$f.txt || exit 1; done
	@for f in templates/*/requirements*.in; do \
	  .venv/bin/uv pip compile -q --universal --python-version 3.10 --generate-hashes --no-emit-index-url \
	    --no-annotate --no-header $$f -o $${f%.in}.txt || exit 1; done

waf-regression: .venv/ready tools ## The core rule set's own tests against our nginx and rules (two minutes)
	@$(PY) -m tests.contract.waf.regression

clean: ## Remove what make built in this checkout (not the platform: see `make down`)
	rm -rf .venv build dist mutants .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The marker comes last: an interrupted installation is simply run again. The file names every package, so
# nothing is left to resolve (--no-deps): pip would take a release of today for what is required with an extra.
.venv/ready: requirements.txt
	@tests/install-tools python
	@python=$$(tests/install-tools --which-python) && "$$python" -m venv .venv
	@echo "installing the toolkit's Python packages into .venv (about 40 s) ..."
	@.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.txt
	@.venv/bin/pip check --disable-pip-version-check
	@touch $@
