"""Compilation, caches of compiled programs, and topologies of devices."""
