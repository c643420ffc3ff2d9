// about: tries the usual doors; each one that opens is a bit in the exit code
// verdict: ok
// limits: {"time": "20s"}
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void) {
  int opened = 0;
  if (setuid(0) == 0 || setgid(0) == 0) opened |= 1;
  if (mount("none", "/tmp", "tmpfs", 0, 0) == 0 || unshare(CLONE_NEWUSER) == 0 || unshare(CLONE_NEWNS) == 0) opened |= 2;
  if (mknod("/task/disk", S_IFBLK | 0600, 0xfe00) == 0) opened |= 4;
  if (ptrace(PTRACE_ATTACH, 1, 0, 0) == 0 || open("/proc/1/mem", O_RDWR) >= 0 || open("/proc/1/root/etc", O_RDONLY) >= 0) opened |= 8;
  if (syscall(SYS_keyctl, 0, -3, 1) >= 0 || syscall(SYS_bpf, 0, 0, 0) >= 0 || syscall(SYS_perf_event_open, 0, 0, 0, 0, 0) >= 0) opened |= 16;
  if (chroot("/tmp") == 0 || sethostname("x", 1) == 0) opened |= 32;
  if (socket(AF_VSOCK, SOCK_STREAM, 0) >= 0) opened |= 64;
  kill(1, SIGKILL);
  kill(-1, SIGURG);
  return opened;
}
