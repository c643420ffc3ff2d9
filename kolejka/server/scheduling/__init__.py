"""server/scheduling"""
