"""How programs on hosts learn the name of the relay's service in Swarm, which is Dokploy's choice where that
deploys it.
"""

NAME, FILE = "relay_relay", "/etc/relay/service"
# In a shell on a host; the file is not there before the first `apply`.
ON_HOST = f"$(cat {FILE} 2>/dev/null || echo {NAME})"
