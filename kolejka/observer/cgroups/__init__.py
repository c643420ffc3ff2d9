"""Control groups: one small interface, and one module each for the kernel's two versions of them."""
