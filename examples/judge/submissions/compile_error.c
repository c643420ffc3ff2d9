// No C at all.
print("6")
