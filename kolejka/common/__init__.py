"""The language all processes of Kolejka speak: units, limits, stats, tasks, results, states, errors, settings."""
