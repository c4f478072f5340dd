"""The whole fleet, in order.

pyinfra inventories/sandbox.py deploys/site.py              # as a plain pyinfra user expects
pyinfra inventories/sandbox.py deploys.edge.edge --limit edge    # one role
python -m deploys apply sandbox                             # the same, with lock, gates and audit log
"""

from deploys import stages

stages.run_all()
