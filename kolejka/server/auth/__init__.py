"""server/auth"""
