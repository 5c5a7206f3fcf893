# An exception comes back with its type, its message and the traceback of these lines.
def share(cake, guests):
    return cake / guests


print("cutting the cake")
return share(1, 0)
