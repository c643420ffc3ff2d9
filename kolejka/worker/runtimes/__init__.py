"""worker/runtimes"""
