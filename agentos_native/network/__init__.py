"""A routed veth pair and nftables elements for each agent."""
