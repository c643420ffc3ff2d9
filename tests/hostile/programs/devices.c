// about: changes its /dev, leaves a terminal behind, looks for one that somebody else left
// verdict: ok
// limits: {"time": "60s"}
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <termios.h>
#include <unistd.h>

#define MUST(what) do { if (!(what)) { fprintf(stderr, "%s: %s\n", #what, strerror(errno)); return 1; } } while (0)

int main(void) {
  char name[64], word[3] = "";
  unsigned char byte = 1;
  struct stat info;
  int null = open("/dev/null", O_RDWR), zero = open("/dev/zero", O_RDONLY), full = open("/dev/full", O_WRONLY);
  MUST(write(null, "x", 1) == 1 && read(null, name, 1) == 0);
  MUST(read(zero, &byte, 1) == 1 && byte == 0);
  MUST(write(full, "x", 1) == -1 && errno == ENOSPC);
  MUST(access("/dev/urandom", R_OK) == 0 && access("/dev/random", R_OK) == 0);
  MUST(flock(null, LOCK_EX | LOCK_NB) == 0);

  MUST(access("/dev/pts/0", F_OK) == -1);
  int terminal = posix_openpt(O_RDWR | O_NOCTTY);
  MUST(terminal >= 0 && grantpt(terminal) == 0 && unlockpt(terminal) == 0);
  MUST(ptsname_r(terminal, name, sizeof name) == 0 && strcmp(name, "/dev/pts/0") == 0);
  int inside = open(name, O_RDWR | O_NOCTTY);
  MUST(inside >= 0 && isatty(inside) && write(inside, "hi", 2) == 2 && read(terminal, word, 2) == 2);
  MUST(stat(name, &info) == 0 && info.st_uid == getuid());

  MUST(mknod("/dev/disk", S_IFBLK | 0600, makedev(254, 0)) == -1);
  MUST(open("/dev/file", O_CREAT | O_WRONLY, 0600) == -1);
  MUST(rename("/dev/zero", "/dev/null") == -1 && unlink("/dev/null") == -1);
  MUST(chmod("/dev/null", 0600) == -1 && chmod("/dev", 0777) == -1 && symlink("/etc", "/dev/etc") == -1);

  if (fork() == 0) { setsid(); for (;;) pause(); }  // holds the terminal
  return 0;
}
