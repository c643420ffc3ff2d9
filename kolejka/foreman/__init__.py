"""foreman"""
