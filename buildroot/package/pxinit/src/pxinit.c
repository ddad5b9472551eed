/*
 * pxinit: PID 1 of a pxvm guest.
 *
 * Mounts, names the machine, starts nginx, says "PXVM READY" on the console,
 * gives a shell, keeps the index page fresh, reaps children, and turns the
 * machine off. The path to READY forks once (nginx) and avoids stdio: every
 * instruction here is executed by each machine of the fleet.
 *
 * Kernel command line:
 *   pxvm.host=NAME        host name (else the name in ip=, else "pxvm")
 *   pxvm.ip=ADDR[/BITS]   address of eth0 (else what the kernel's ip= set up)
 *   pxvm.gw=ADDR          default route, together with pxvm.ip
 *   pxvm.time=SECONDS     what time it is, in seconds since 1970
 *   pxvm.tick=SECONDS     how often the index page is rewritten, 0 = never (1)
 *   pxvm.root=/dev/vda    mount this ext2 file system and run its /sbin/init
 *   pxvm.mount=DEV:DIR    mount an ext2 file system; may be given several times
 *   console=TTY           where the shell runs (the last one counts)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WWW "/run/www"
#define MAX_MOUNTS 8

static char cmdline[2048];
static char host[65] = "";
static char address[16] = "no address";
static char tty_path[40] = "/dev/ttyS0";
static const char *opt_ip, *opt_gw, *opt_root, *opt_time;
static const char *opt_mount[MAX_MOUNTS];
static int mounts;
static long tick = 1;
static sigset_t signals;

/* ---- text without stdio ------------------------------------------------ */

struct text {
	char *at, *end;
};

static void put(struct text *t, const char *s)
{
	while (*s && t->at < t->end)
		*t->at++ = *s++;
}

/* `value` in decimal, at least `width` digits. */
static void put_number(struct text *t, unsigned long value, int width)
{
	char digits[12];
	int i = sizeof(digits);

	digits[--i] = 0;
	do {
		digits[--i] = '0' + value % 10;
		value /= 10;
	} while (value);
	while (i > 0 && (int)sizeof(digits) - 1 - i < width)
		digits[--i] = '0';
	put(t, digits + i);
}

static void put_centi(struct text *t, unsigned long whole, unsigned long hundredths)
{
	put_number(t, whole, 1);
	put(t, ".");
	put_number(t, hundredths, 2);
}

static void put_address(struct text *t, in_addr_t address)
{
	unsigned char byte[4];
	int i;

	memcpy(byte, &address, 4);
	for (i = 0; i < 4; i++) {
		if (i)
			put(t, ".");
		put_number(t, byte[i], 1);
	}
}

/* Text from a guest or host may hold anything: keep it inert in HTML. */
static void put_html(struct text *t, const char *s)
{
	char c[2] = { 0, 0 };

	for (; *s; s++) {
		c[0] = *s;
		put(t, *s == '<' ? "&lt;" : *s == '>' ? "&gt;" : *s == '&' ? "&amp;" : c);
	}
}

static void print(const char *mark, const char *what, const char *detail, int error)
{
	char line[256];
	struct text t = { line, line + sizeof(line) };

	put(&t, mark);
	put(&t, what);
	put(&t, detail);
	if (error) {
		put(&t, ": error ");
		put_number(&t, (unsigned long)error, 1);
	}
	if (t.at == t.end)
		t.at--;
	*t.at++ = '\n';
	write(2, line, t.at - line);
}

static void say(const char *what, const char *detail, int error)
{
	print("pxinit: ", what, detail, error);
}

/* What the user of a fleet has to know: pxvm shows such a line when the machine is ready. */
static void warn(const char *what, const char *detail, int error)
{
	print("PXVM WARNING ", what, detail, error);
}

/* ---- the kernel command line ------------------------------------------- */

static int is_option(char *word, const char *name, const char **value)
{
	size_t n = strlen(name);

	if (strncmp(word, name, n))
		return 0;
	*value = word + n;
	return 1;
}

/* The host name field of ip=client:server:gateway:mask:host:device:... */
static void host_from_ip(const char *ip)
{
	size_t n;
	int field;

	for (field = 0; field < 4; field++) {
		ip = strchr(ip, ':');
		if (!ip)
			return;
		ip++;
	}
	n = strcspn(ip, ":");
	if (n < sizeof(host)) {
		memcpy(host, ip, n);
		host[n] = 0;
	}
}

/* The number that `*s` starts with; `*s` moves behind it. -1: no number. */
static long long take_number(const char **s, long long limit)
{
	long long value = 0;

	if (**s < '0' || **s > '9')
		return -1;
	while (**s >= '0' && **s <= '9') {
		value = value * 10 + (*(*s)++ - '0');
		if (value > limit)
			return -1;
	}
	return value;
}

/* a.b.c.d at `*s`; `*s` moves behind it. */
static int take_address(const char **s, in_addr_t *address)
{
	unsigned char byte[4];
	int i;

	for (i = 0; i < 4; i++) {
		long long value;

		if (i && *(*s)++ != '.')
			return 0;
		value = take_number(s, 255);
		if (value < 0)
			return 0;
		byte[i] = (unsigned char)value;
	}
	memcpy(address, byte, 4);
	return 1;
}

/* /dev/NAME of console=NAME,options */
static void set_tty(const char *console)
{
	size_t n = strcspn(console, ",");

	if (n && n < sizeof(tty_path) - 5) {
		memcpy(tty_path + 5, console, n);
		tty_path[5 + n] = 0;
	}
}

/*
 * A machine without a clock starts in 1970, and nginx crashes on requests while
 * time() is 0: no machine is older than this.
 */
static void set_clock(void)
{
	struct timespec now, oldest = { .tv_sec = 1735689600 }; /* 2025-01-01 */

	clock_gettime(CLOCK_REALTIME, &now);
	if (now.tv_sec < oldest.tv_sec)
		now = oldest;
	else if (!opt_time)
		return;
	if (opt_time) {
		long long seconds = take_number(&opt_time, 1ll << 40);

		if (seconds > 0)
			now.tv_sec = seconds;
	}
	clock_settime(CLOCK_REALTIME, &now);
}

static void read_cmdline(void)
{
	const char *value, *named = NULL, *ip = NULL;
	char *word, *save;
	ssize_t n;
	int fd = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	n = read(fd, cmdline, sizeof(cmdline) - 1);
	close(fd);
	if (n <= 0)
		return;
	for (word = strtok_r(cmdline, " \n", &save); word; word = strtok_r(NULL, " \n", &save)) {
		if (is_option(word, "pxvm.host=", &named)
		    || is_option(word, "pxvm.ip=", &opt_ip)
		    || is_option(word, "pxvm.gw=", &opt_gw)
		    || is_option(word, "pxvm.root=", &opt_root)
		    || is_option(word, "pxvm.time=", &opt_time)
		    || is_option(word, "ip=", &ip))
			continue;
		if (is_option(word, "pxvm.tick=", &value))
			tick = (long)take_number(&value, 1000000);
		else if (is_option(word, "pxvm.mount=", &value) && mounts < MAX_MOUNTS)
			opt_mount[mounts++] = value;
		else if (is_option(word, "console=", &value))
			set_tty(value);
	}
	if (tick < 0)
		tick = 1;
	if (named && *named && strlen(named) < sizeof(host))
		strcpy(host, named);
	else if (ip)
		host_from_ip(ip);
}

/* ---- disks -------------------------------------------------------------- */

static int mount_disk(const char *device, const char *directory)
{
	if (!mount(device, directory, "ext2", MS_NOATIME, NULL))
		return 0;
	warn("cannot mount ", device, errno);
	return -1;
}

/* DEV:DIR */
static void mount_option(const char *option)
{
	char device[64];
	const char *colon = strchr(option, ':');

	if (!colon || colon[1] != '/' || (size_t)(colon - option) >= sizeof(device)) {
		say("pxvm.mount wants DEVICE:/DIRECTORY, not ", option, 0);
		return;
	}
	memcpy(device, option, colon - option);
	device[colon - option] = 0;
	mkdir(colon + 1, 0755);
	mount_disk(device, colon + 1);
}

/* Hands the machine to the init of another root; returns only on failure. */
static void switch_root(const char *device)
{
	static const char *const moved[] = { "dev", "proc", "sys", "run", NULL };
	char *const argv[] = { "/sbin/init", NULL };
	char *const envp[] = { "HOME=/", "TERM=linux", NULL };
	struct stat st;
	int i;

	if (mount_disk(device, "/mnt"))
		return;
	if (lstat("/mnt/sbin/init", &st)) {
		warn("no /sbin/init on ", device, 0);
		umount("/mnt");
		return;
	}
	for (i = 0; moved[i]; i++) {
		char from[8] = "/", to[16] = "/mnt/";

		strcat(from, moved[i]);
		strcat(to, moved[i]);
		mkdir(to, 0755);
		if (mount(from, to, NULL, MS_MOVE, NULL))
			say("cannot move ", from, errno);
	}
	/* What an initramfs holds is not reachable any more: free its memory. */
	unlink("/usr/sbin/nginx");
	unlink("/bin/busybox");
	if (chdir("/mnt") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".")) {
		warn("cannot switch to ", device, errno);
		return;
	}
	sigprocmask(SIG_UNBLOCK, &signals, NULL);
	execve(argv[0], argv, envp);
	warn("cannot run /sbin/init of ", device, errno);
}

/* ---- network ------------------------------------------------------------ */

static void set_inet(struct sockaddr *where, in_addr_t address)
{
	struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = address };

	memcpy(where, &in, sizeof(in));
}

static void network_from_options(int s)
{
	struct ifreq ifr = { .ifr_name = "eth0" };
	const char *at = opt_ip;
	long bits = 24;
	in_addr_t ip;

	if (!take_address(&at, &ip))
		goto bad;
	if (*at == '/') {
		at++;
		bits = (long)take_number(&at, 32);
	}
	if (*at || bits < 0)
		goto bad;
	set_inet(&ifr.ifr_addr, ip);
	if (ioctl(s, SIOCSIFADDR, &ifr))
		goto failed;
	set_inet(&ifr.ifr_netmask, bits ? htonl(~0ul << (32 - bits)) : 0);
	if (ioctl(s, SIOCSIFNETMASK, &ifr))
		goto failed;
	ifr.ifr_flags = IFF_UP | IFF_RUNNING;
	if (ioctl(s, SIOCSIFFLAGS, &ifr))
		goto failed;
	if (opt_gw) {
		struct rtentry route = { .rt_flags = RTF_UP | RTF_GATEWAY };

		at = opt_gw;
		if (!take_address(&at, &ip) || *at) {
			say("pxvm.gw wants an IPv4 address, not ", opt_gw, 0);
			return;
		}
		set_inet(&route.rt_dst, 0);
		set_inet(&route.rt_genmask, 0);
		set_inet(&route.rt_gateway, ip);
		if (ioctl(s, SIOCADDRT, &route) && errno != EEXIST)
			say("cannot route over ", opt_gw, errno);
	}
	return;
bad:
	say("pxvm.ip wants ADDRESS/BITS, not ", opt_ip, 0);
	return;
failed:
	say("cannot set up eth0 as ", opt_ip, errno);
}

static void network(void)
{
	struct ifreq ifr = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
	int s = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (s < 0)
		return;
	ioctl(s, SIOCSIFFLAGS, &ifr);
	if (opt_ip)
		network_from_options(s);
	strcpy(ifr.ifr_name, "eth0");
	if (!ioctl(s, SIOCGIFADDR, &ifr)) {
		struct text t = { address, address + sizeof(address) - 1 };
		struct sockaddr_in in;

		memcpy(&in, &ifr.ifr_addr, sizeof(in));
		put_address(&t, in.sin_addr.s_addr);
		*t.at = 0;
	}
	close(s);
}

/* ---- the index page ----------------------------------------------------- */

/*
 * The text before the numbers is written once. Each tick rewrites the page's
 * last part in place, always with the same length, so a reader sees either the
 * old numbers or the new ones and never a page cut short.
 */
static const char page_head[] =
	"<!doctype html><html lang=en><meta charset=utf-8>"
	"<meta name=viewport content=\"width=device-width\"><title>";
static const char page_style[] =
	"</title><style>"
	"body{font:16px/1.5 system-ui,sans-serif;background:#0f172a;color:#e2e8f0;"
	"display:grid;place-items:center;min-height:100vh;margin:0}"
	"main{padding:2em 3em;border-radius:12px;background:#1e293b}"
	"h1{margin:0 0 .5em;color:#5eead4}"
	"dl{display:grid;grid-template-columns:auto auto;gap:.2em 2em;margin:0}"
	"dt{color:#94a3b8}dd{margin:0;font-variant-numeric:tabular-nums}"
	"p{color:#94a3b8;margin:1em 0 0}"
	"</style><main><h1>";
static const char page_tail[] =
	"</dl><p>RISC-V Linux on pxvm</main></html>\n";

enum { NUMBERS = 160 };

static int page_fd = -1;
static off_t page_numbers;
static int page_failed;

static void page_tick(void)
{
	char part[NUMBERS + sizeof(page_tail)];
	struct text t = { part, part + NUMBERS };
	struct timespec now;
	struct sysinfo info;
	unsigned long load;

	if (page_fd < 0)
		return;
	clock_gettime(CLOCK_BOOTTIME, &now);
	sysinfo(&info);
	load = info.loads[0] >> (SI_LOAD_SHIFT - 8);
	put(&t, "<dt>Uptime<dd>");
	put_centi(&t, (unsigned long)now.tv_sec, (unsigned long)now.tv_nsec / 10000000);
	put(&t, " s<dt>Load<dd>");
	put_centi(&t, load >> 8, (load & 255) * 100 >> 8);
	put(&t, "<dt>Free memory<dd>");
	put_number(&t, info.freeram >> 10, 1);
	put(&t, " KiB");
	while (t.at < t.end)
		*t.at++ = ' ';
	memcpy(t.at, page_tail, sizeof(page_tail) - 1);
	if (pwrite(page_fd, part, NUMBERS + sizeof(page_tail) - 1, page_numbers) < 0 && !page_failed) {
		page_failed = 1;
		say("cannot write ", WWW "/index.html", errno);
	}
}

static void page_create(void)
{
	char head[2048];
	struct text t = { head, head + sizeof(head) };

	mkdir(WWW, 0755);
	page_fd = open(WWW "/index.html", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (page_fd < 0) {
		say("cannot write ", WWW "/index.html", errno);
		return;
	}
	put(&t, page_head);
	put_html(&t, host);
	put(&t, page_style);
	put_html(&t, host);
	put(&t, "</h1><dl><dt>Address<dd>");
	put_html(&t, address);
	page_numbers = t.at - head;
	write(page_fd, head, page_numbers);
	page_tick();
}

/* ---- children ------------------------------------------------------------ */

static char *const environment[] = {
	"HOME=/root", "PATH=/sbin:/usr/sbin:/bin:/usr/bin", "SHELL=/bin/sh",
	"TERM=linux", "USER=root", "PS1=\\h:\\w\\$ ", NULL,
};
static char child_stack[4096] __attribute__((aligned(16)));

/*
 * Starts `child` in a process that borrows this one's memory until it runs
 * another program (as vfork does), which is the cheap way to fork.
 */
static pid_t start(int (*child)(void *))
{
	pid_t pid = clone(child, child_stack + sizeof(child_stack),
			  CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);

	if (pid < 0)
		say("cannot fork", "", errno);
	return pid;
}

static int nginx_child(void *unused)
{
	char *const argv[] = { "nginx", NULL };

	(void)unused;
	sigprocmask(SIG_UNBLOCK, &signals, NULL);
	execve("/usr/sbin/nginx", argv, environment);
	say("cannot run ", "/usr/sbin/nginx", errno);
	_exit(127);
}

/* nginx leaves the foreground once it listens. */
static int nginx_listens(void)
{
	pid_t pid = start(nginx_child);
	int status;

	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return 0;
	if (WIFEXITED(status) && !WEXITSTATUS(status))
		return 1;
	say("nginx did not start", "", 0);
	return 0;
}

static int shell_child(void *unused)
{
	char *const argv[] = { "-sh", NULL };
	int fd;

	(void)unused;
	setsid();
	fd = open(tty_path, O_RDWR);
	if (fd < 0) {
		say("cannot open ", tty_path, errno);
		_exit(127);
	}
	ioctl(fd, TIOCSCTTY, 1);
	dup2(fd, 0);
	dup2(fd, 1);
	dup2(fd, 2);
	if (fd > 2)
		close(fd);
	chdir("/root");
	sigprocmask(SIG_UNBLOCK, &signals, NULL);
	execve("/bin/sh", argv, environment);
	say("cannot run ", "/bin/sh", errno);
	_exit(127);
}

/* ---- the end -------------------------------------------------------------- */

static void leave(int how)
{
	struct timespec step = { .tv_nsec = 20000000 };
	int i;

	kill(-1, SIGTERM);
	kill(-1, SIGCONT);
	for (i = 0; i < 25; i++) {
		pid_t pid;

		while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
			;
		if (pid < 0)
			break;
		nanosleep(&step, NULL);
		/* Interactive shells ignore SIGTERM; a hang-up ends them. */
		if (i == 0)
			kill(-1, SIGHUP);
	}
	kill(-1, SIGKILL);
	for (i = mounts - 1; i >= 0; i--) {
		const char *directory = strchr(opt_mount[i], ':');

		if (directory)
			umount(directory + 1);
	}
	sync();
	reboot(how);
	for (;;)
		pause();
}

/* ---- main ------------------------------------------------------------------ */

static void ready(void)
{
	char line[128];
	struct text t = { line, line + sizeof(line) };
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	put(&t, "PXVM READY host=");
	put(&t, host);
	put(&t, " uptime=");
	put_centi(&t, (unsigned long)now.tv_sec, (unsigned long)now.tv_nsec / 10000000);
	put(&t, "\n");
	write(1, line, t.at - line);
}

int main(void)
{
	pid_t shell = -1;
	time_t shell_started = 0;
	struct timespec wait = { 0 };
	int i;

	if (getpid() != 1) {
		say("this is the first process of a pxvm guest, nothing to run by hand", "", 0);
		return 1;
	}
	sigemptyset(&signals);
	sigaddset(&signals, SIGCHLD);
	sigaddset(&signals, SIGUSR1);
	sigaddset(&signals, SIGUSR2);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGINT);
	sigprocmask(SIG_BLOCK, &signals, NULL);
	reboot(RB_DISABLE_CAD);

	mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, NULL);
	mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755");
	read_cmdline();
	set_clock();
	if (!*host)
		strcpy(host, "pxvm");
	sethostname(host, strlen(host));
	if (opt_root) {
		mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
		switch_root(opt_root);
		warn("the root is the image's, not pxvm.root=", opt_root, 0);
	}
	for (i = 0; i < mounts; i++)
		mount_option(opt_mount[i]);
	network();
	page_create();
	if (nginx_listens())
		ready();

	/* Nothing before READY needs these. */
	mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, NULL);
	/* A root in ROM is read-only: its user has a home all the same. */
	if (access("/root", W_OK))
		mount("tmpfs", "/root", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0700");
	mkdir("/dev/pts", 0755);
	mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=0620,ptmxmode=0666");

	for (;;) {
		struct timespec now;
		siginfo_t info;
		int signal;

		if (shell < 0) {
			/* A shell that cannot live must not keep the machine busy. */
			clock_gettime(CLOCK_MONOTONIC, &now);
			if (shell_started && now.tv_sec - shell_started < 2) {
				wait.tv_sec = 1;
				nanosleep(&wait, NULL);
			}
			shell_started = now.tv_sec;
			shell = start(shell_child);
		}
		wait.tv_sec = tick;
		signal = tick ? sigtimedwait(&signals, &info, &wait) : sigwaitinfo(&signals, &info);
		switch (signal) {
		case SIGUSR1:
			leave(RB_HALT_SYSTEM);
			break;
		case SIGUSR2:
			leave(RB_POWER_OFF);
			break;
		case SIGTERM:
		case SIGINT:
			leave(RB_AUTOBOOT);
			break;
		case SIGCHLD:
			for (;;) {
				pid_t pid = waitpid(-1, NULL, WNOHANG);

				if (pid <= 0)
					break;
				if (pid == shell)
					shell = -1;
			}
			break;
		default:
			page_tick();
		}
	}
}
