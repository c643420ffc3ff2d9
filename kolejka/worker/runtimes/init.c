/* The first process of every payload's world: small, static, without a library.

   init CONTROL N CANDIDATE*N ARGUMENT...
   init as UID PROGRAM ARGUMENT...

   CONTROL is the number of an inherited SOCK_SEQPACKET socket, or the path of one to connect to. Over it:

     child of init ->  'R'                        ready: held before exec; the kernel tells its pid (SCM_CREDENTIALS)
     supervisor    ->  'G' bytes + SCM_RIGHTS 0, 1, 2   go: largest file, standard input, output, error
     child of init ->  'X' seconds, ns            about to execute, at this monotonic time
     child of init ->  'E' errno, exists          no candidate could be executed (exists: one of them is there)
     init          ->  'S' status, seconds, ns    the child's wait status and the monotonic time at which it was reaped

   The supervisor puts the held child alone into the session, so that neither this process nor whatever built the sandbox
   is limited or measured, and the child runs under its limits from its first instruction. init then reaps orphans until
   nobody is left. It cannot be traced or looked into by the payload, although both have one uid (PR_SET_DUMPABLE).

   The second form becomes PROGRAM under another user and group id, without supplementary groups: Python can then start
   it by vfork, which copies no page tables of a large worker.

   Compiled into init.py by build_init.py, see there.  */

typedef unsigned long word;
typedef unsigned int u32;

#if defined(__x86_64__)
enum { CLOSE_RANGE = 436, CONNECT = 42, CLONE = 56, CLOCK_GETTIME = 228, DUP3 = 292, EXECVE = 59,
       EXIT_GROUP = 231, FACCESSAT = 269, FCNTL = 72, PRCTL = 157, PRLIMIT = 302, RECVMSG = 47, RT_SIGACTION = 13, RT_SIGPROCMASK = 14, SENDTO = 44, SETGROUPS = 116, SETRESGID = 119, SETRESUID = 117, SETSID = 112,
       SOCKET = 41, WAIT4 = 61 };
static long call(long n, long a, long b, long c, long d, long e, long f) {
  long result;
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  __asm__ volatile("syscall" : "=a"(result) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}
__asm__(".globl _start\n_start:\n xor %ebp,%ebp\n mov %rsp,%rdi\n and $-16,%rsp\n call begin\n hlt\n");
#elif defined(__aarch64__)
enum { CLOSE_RANGE = 436, CONNECT = 203, CLONE = 220, CLOCK_GETTIME = 113, DUP3 = 24, EXECVE = 221, EXIT_GROUP = 94,
       FACCESSAT = 48, FCNTL = 25, PRCTL = 167, PRLIMIT = 261, RECVMSG = 212, RT_SIGACTION = 134, RT_SIGPROCMASK = 135, SENDTO = 206, SETGROUPS = 159, SETRESGID = 149, SETRESUID = 147,
       SETSID = 157, SOCKET = 198, WAIT4 = 260 };
static long call(long n, long a, long b, long c, long d, long e, long f) {
  register long x8 __asm__("x8") = n;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  register long x4 __asm__("x4") = e;
  register long x5 __asm__("x5") = f;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
  return x0;
}
__asm__(".globl _start\n_start:\n mov x29,#0\n mov x0,sp\n bl begin\n");
#else
#error "no system calls known for this machine"
#endif

enum { EINTR = 4, ENOENT = 2, ECHILD = 10, EACCES = 13, ENOTDIR = 20 };
enum { CHANNEL = 3, CLOEXEC = 02000000, CMSG_CLOEXEC = 0x40000000, NOSIGNAL = 0x4000 };

static long send(const void *data, word size) { return call(SENDTO, CHANNEL, (long)data, size, NOSIGNAL, 0, 0); }
static void leave(int status) {
  for (;;) call(EXIT_GROUP, status, 0, 0, 0, 0, 0);
}

static long number(const char *text) {
  long value = 0;
  while (*text >= '0' && *text <= '9') value = 10 * value + *text++ - '0';
  return value;
}

static long reach(const char *path) {
  struct { unsigned short family; char path[108]; } address;
  word size = 0;
  address.family = 1;
  while (path[size] && size < sizeof address.path - 1) {
    address.path[size] = path[size];
    __asm__ volatile("" ::: "memory"); /* no call of a memcpy that is not there */
    size++;
  }
  address.path[size] = 0;
  long channel = call(SOCKET, 1, 5, 0, 0, 0, 0);
  return call(CONNECT, channel, (long)&address, 2 + size + 1, 0, 0, 0) < 0 ? -1 : channel;
}

static void payload(char **candidates, long count, char **arguments, char **environment) {
  char ready = 'R';
  struct { char kind; word file_size; } go = {0, 0};
  struct { void *base; word size; } part = {&go, sizeof go};
  struct { word size; int level, type; int files[4]; } rights;
  struct { void *name; u32 name_size; void *parts; word part_count; void *control; word control_size; int flags; } message =
      {0, 0, &part, 1, &rights, sizeof rights, 0};
  call(SETSID, 0, 0, 0, 0, 0, 0);
  if (send(&ready, 1) != 1) leave(125);
  long got;
  do got = call(RECVMSG, CHANNEL, (long)&message, CMSG_CLOEXEC, 0, 0, 0); while (got == -EINTR);
  if (got != sizeof go || go.kind != 'G' || message.control_size < sizeof rights - sizeof(int) || rights.type != 1) leave(125);
  for (int stream = 0; stream < 3; stream++) call(DUP3, rights.files[stream], stream, 0, 0, 0, 0);
  call(CLOSE_RANGE, CHANNEL + 1, ~0u, 0, 0, 0, 0);
  word most[2] = {go.file_size, go.file_size}, nothing[2] = {0, 0};
  call(PRLIMIT, 0, 4 /* CORE */, (long)nothing, 0, 0, 0);
  if (go.file_size) call(PRLIMIT, 0, 1 /* FSIZE */, (long)most, 0, 0, 0);
  struct { char kind; word seconds, nanoseconds; } start = {'X', 0, 0};
  call(CLOCK_GETTIME, 1 /* MONOTONIC */, (long)&start.seconds, 0, 0, 0, 0);
  send(&start, sizeof start);
  long worst = ENOENT, exists = 0;
  for (long i = 0; i < count; i++) {
    long error = -call(EXECVE, (long)candidates[i], (long)arguments, (long)environment, 0, 0, 0);
    if (error == ENOENT || error == ENOTDIR) {
      if (call(FACCESSAT, -100, (long)candidates[i], 0, 0, 0, 0) < 0) continue;
      exists = 1; /* the file is there; what it asks to be run by is not */
      if (worst == ENOENT) worst = error;
      break;
    }
    exists = 1;
    worst = error;
    if (error != EACCES) break;
  }
  struct { char kind; u32 error, exists; } failure = {'E', worst, exists};
  send(&failure, sizeof failure);
  leave(exists ? 126 : 127);
}

static void become(long id, char **arguments, char **environment) {
  if (call(SETGROUPS, 0, 0, 0, 0, 0, 0) == 0 && call(SETRESGID, id, id, id, 0, 0, 0) == 0 &&
      call(SETRESUID, id, id, id, 0, 0, 0) == 0)
    call(EXECVE, (long)arguments[0], (long)arguments, (long)environment, 0, 0, 0);
  leave(125);
}

static void hear_signals(void) { /* whoever started us may ignore or block some, and exec hands that on */
  word defaults[4] = {0, 0, 0, 0};
  for (int signal = 1; signal < 65; signal++) call(RT_SIGACTION, signal, (long)defaults, 0, 8, 0, 0);
  call(RT_SIGPROCMASK, 2 /* SETMASK */, (long)defaults, 0, 8, 0, 0);
}

__attribute__((used)) void begin(word *stack) {
  long argc = stack[0];
  char **argv = (char **)(stack + 1), **environment = argv + argc + 1;
  if (argc < 4) leave(125);
  if (argv[1][0] == 'a' && argv[1][1] == 's' && !argv[1][2]) become(number(argv[2]), argv + 3, environment);
  hear_signals();
  call(PRCTL, 4 /* SET_DUMPABLE */, 0, 0, 0, 0, 0);
  call(PRCTL, 36 /* SET_CHILD_SUBREAPER */, 1, 0, 0, 0, 0);
  long channel = argv[1][0] == '/' ? reach(argv[1]) : number(argv[1]), count = number(argv[2]);
  if (channel < 0 || count < 0 || argc < 4 + count) leave(125);
  if (channel != CHANNEL) call(DUP3, channel, CHANNEL, CLOEXEC, 0, 0, 0);
  else call(FCNTL, CHANNEL, 2 /* SETFD */, 1 /* CLOEXEC */, 0, 0, 0);
  call(CLOSE_RANGE, CHANNEL + 1, ~0u, 0, 0, 0, 0);
  long child = call(CLONE, 17 /* SIGCHLD */, 0, 0, 0, 0, 0);
  if (child == 0) payload(argv + 3, count, argv + 3 + count, environment);
  if (child < 0) leave(125);
  for (;;) {
    int status = 0;
    long pid = call(WAIT4, -1, (long)&status, 0, 0, 0, 0);
    if (pid > 0 && (status & 0x7f) == 0x7f) {
      continue; /* it asked to be traced by its parent, and stands still: not an end */
    } else if (pid == child) {
      struct { char kind; u32 status; word seconds, nanoseconds; } end;
      end.kind = 'S';
      end.status = status;
      call(CLOCK_GETTIME, 1 /* MONOTONIC */, (long)&end.seconds, 0, 0, 0, 0);
      send(&end, sizeof end);
    } else if (pid == -ECHILD) {
      leave(0);
    } else if (pid < 0 && pid != -EINTR) {
      leave(125);
    }
  }
}
