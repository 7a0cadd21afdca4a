"""The router server: gives each agent its table, hears what agents applied, says so in the status."""
