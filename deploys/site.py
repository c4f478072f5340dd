"""The whole fleet, in order.

pyinfra inventories/sandbox.py deploys/site.py              # as a plain pyinfra user expects
pyinfra inventories/sandbox.py deploys.roles.edge.edge --limit edge   # one role
python -m deploys apply sandbox                             # the same, with lock, health checks and audit log
"""

from deploys.run import stages

stages.run_all()
