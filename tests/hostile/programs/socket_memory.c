// about: lets the network's buffers hold what its memory may not, and goes on; an exit code of 1 means that it got away
// verdict: limit memory
// limits: {"memory": "32M", "time": "60s"}
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>
enum { SOCKETS = 3000, SIZE = 60000 };
static char block[SIZE];
static struct sockaddr_in names[SOCKETS];
static int opened[SOCKETS];

static int counted_apart(void) {
  static char groups[1 << 14];
  int file = open("/proc/self/cgroup", O_RDONLY);
  read(file, groups, sizeof groups - 1);
  close(file);
  return strstr(groups, ":memory:") != 0;
}

static void take(long size) {
  volatile char *pages = malloc(size);
  for (long at = 0; at < size; at += 4096) pages[at] = 1;
}

int main(void) {
  int apart = counted_apart();
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  socklen_t size = sizeof *names;
  int count = 0, sender = socket(AF_INET, SOCK_DGRAM, 0);
  for (; count < SOCKETS; count++) { /* all that is memory of any other kind comes first */
    struct sockaddr_in *name = names + count;
    name->sin_family = AF_INET;
    name->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if ((opened[count] = socket(AF_INET, SOCK_DGRAM, 0)) < 0) break;
    if (bind(opened[count], (void *)name, size) || getsockname(opened[count], (void *)name, &size)) return 2;
  }
  for (int i = 0; i < 3 * count; i++) sendto(sender, block, SIZE, MSG_DONTWAIT, (void *)(names + i % count), size);
  /* Version 2 counts them as memory and lets packets in all the same: the next page ends it. Version 1 bounds them apart. */
  if (!apart) return take(8 << 20), 1;
  long held = 0;
  while (count--) for (long got; (got = recv(opened[count], block, SIZE, MSG_DONTWAIT)) > 0;) held += got;
  if (held <= 64 << 20) take(64 << 20);
  return 1;
}
