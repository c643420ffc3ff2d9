"""observer/cgroups"""
