// about: unlinked files that only one thread has open, while the first thread of its process has left
// verdict: limit workspace
// limits: {"workspace": "8M", "time": "60s"}
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
static char block[1 << 20], stack[1 << 16] __attribute__((aligned(16)));
static int hold(void *unused) {
  for (char name[] = "a"; name[0] < 'e'; name[0]++) {
    int fd = open(name, O_CREAT | O_WRONLY, 0600);
    unlink(name);
    for (int i = 0; i < 4; i++) write(fd, block, sizeof block);
  }
  for (;;) pause();
}
int main(void) {
  clone(hold, stack + sizeof stack, CLONE_VM | CLONE_SIGHAND | CLONE_THREAD | CLONE_FS, 0); /* not its open files */
  syscall(SYS_exit, 0);
}
