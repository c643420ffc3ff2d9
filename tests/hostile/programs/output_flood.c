// about: floods standard output and standard error, and does not mind when nobody reads
// verdict: limit output
// flags: stdout_truncated?
// limits: {"output": "100K", "time": "30s"}
#include <signal.h>
#include <unistd.h>
static char block[65536];
int main(void) { signal(SIGPIPE, SIG_IGN); for (;;) { write(1, block, sizeof block); write(2, block, 512); } }
