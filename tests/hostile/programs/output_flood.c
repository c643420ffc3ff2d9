// about: floods standard output and standard error
// verdict: limit output
// flags: stdout_truncated?
// limits: {"output": "100K", "time": "30s"}
#include <unistd.h>
static char block[65536];
int main(void) { for (;;) { write(1, block, sizeof block); write(2, block, 512); } }
