"""What can be done to the files of a share: one line for each thing, `name: ok` or how it failed.

Runs in a guest, in a workspace that `share.sh` has filled; the manual's table of shares is held against what it prints.
"""
import ctypes, errno, fcntl, mmap, os, shutil, socket, stat, subprocess, sys

base = sys.argv[1]
os.makedirs(base, exist_ok=True); os.chdir(base)
def w(p, t):
    with open(p, 'w') as f: f.write(t)
def r(p):
    with open(p) as f: return f.read()
def case(f):
    try: out = f() or 'ok'
    except OSError as e: out = errno.errorcode.get(e.errno, str(e.errno))
    except AssertionError as e: out = str(e) or 'wrong'
    print(f'{f.__name__}: {out}', flush=True)
@case
def rename_file_over():
    w('a','new'); w('b','old'); os.rename('a','b'); assert r('b')=='new'
@case
def rename_dir_made_here():
    os.mkdir('d1'); w('d1/f','x'); os.rename('d1','d2'); assert r('d2/f')=='x'
@case
def rename_dir_from_before():
    os.rename('../old/dir','../old/moved'); assert r('../old/moved/f')=='x\n'
@case
def rename_dir_over_empty():
    os.mkdir('e1'); w('e1/f','x'); os.mkdir('e2'); os.rename('e1','e2'); assert r('e2/f')=='x'
@case
def rename_dir_over_full():
    os.mkdir('g1'); os.mkdir('g2'); w('g2/f','x')
    try: os.rename('g1','g2')
    except OSError as e: assert e.errno in (errno.ENOTEMPTY, errno.EEXIST), e; return
    return 'no error'
@case
def replaced_read():
    w('c','old'); f=open('c'); w('c2','new'); os.rename('c2','c'); assert f.read()=='old', 'old gone'
@case
def replaced_write():
    w('h','old'); f=os.open('h',os.O_RDWR); w('h2','new'); os.rename('h2','h'); os.write(f,b'X'); os.close(f); v=r('h'); assert v=='new', v
@case
def replaced_truncate():
    w('i','old'); f=os.open('i',os.O_RDWR); w('i2','newnew'); os.rename('i2','i')
    try: os.ftruncate(f,1)
    finally:
        v=r('i'); assert v=='newnew','cuts the new file'
@case
def replaced_chmod():
    w('j','old'); f=os.open('j',os.O_RDWR); w('j2','new'); os.chmod('j2',0o644); os.rename('j2','j')
    try: os.fchmod(f,0o600)
    finally: assert stat.S_IMODE(os.stat('j').st_mode)==0o644,'changes the new file'
@case
def replaced_fstat():
    w('k','old'); f=os.open('k',os.O_RDWR); w('k2','newnew'); os.rename('k2','k'); s=os.fstat(f).st_size; assert s==3,'shows the new file'
@case
def replaced_append():
    w('l','old'); f=os.open('l',os.O_RDWR|os.O_APPEND); w('l2','newnew'); os.rename('l2','l'); os.write(f,b'+'); v=os.pread(f,20,0); assert v==b'old+',v; assert r('l')=='newnew'
@case
def unlinked_rw():
    f=os.open('m',os.O_RDWR|os.O_CREAT); os.write(f,b'data'); os.unlink('m'); os.write(f,b'more'); v=os.pread(f,20,0); assert v==b'datamore',v
@case
def unlinked_truncate():
    f=os.open('n',os.O_RDWR|os.O_CREAT); os.write(f,b'data'); os.unlink('n'); os.ftruncate(f,2)
@case
def unlinked_fstat():
    f=os.open('n1',os.O_RDWR|os.O_CREAT); os.write(f,b'data'); os.unlink('n1'); assert os.fstat(f).st_size==4
@case
def unlinked_mmap_shared():
    f=os.open('n2',os.O_RDWR|os.O_CREAT); os.write(f,b'data'); os.unlink('n2'); m=mmap.mmap(f,4); m[0:1]=b'D'; m.flush(); m.close(); v=os.pread(f,4,0); assert v==b'Data',v
@case
def unlinked_mmap_private():
    f=os.open('n3',os.O_RDWR|os.O_CREAT); os.write(f,b'data'); os.unlink('n3'); m=mmap.mmap(f,4,mmap.MAP_PRIVATE); assert m[:]==b'data'
@case
def unlinked_recreated_truncate():
    f=os.open('o',os.O_RDWR|os.O_CREAT); os.write(f,b'data'); os.unlink('o'); w('o','fresh')
    try: os.ftruncate(f,0)
    finally:
        v=r('o'); assert v=='fresh','cuts the new file'
@case
def dir_unlinked_fd():
    os.mkdir('p'); f=os.open('p',os.O_RDONLY); os.rmdir('p'); assert os.listdir(f)==[]
@case
def mmap_shared():
    w('q','data'); f=os.open('q',os.O_RDWR); m=mmap.mmap(f,4); m[0:1]=b'D'; m.flush(); m.close(); os.close(f); v=r('q'); assert v=='Data',v
@case
def mmap_then_write():
    w('q2','data'); f=os.open('q2',os.O_RDWR); m=mmap.mmap(f,4); os.pwrite(f,b'X',0); assert m[0:1]==b'X', m[:]
@case
def mkfifo(): os.mkfifo('fifo')
@case
def unix_socket():
    s=socket.socket(socket.AF_UNIX); s.bind('sock')
@case
def mknod_char(): os.mknod('chr', stat.S_IFCHR|0o600, os.makedev(1,3))
@case
def mknod_regular(): os.mknod('reg', stat.S_IFREG|0o600); assert os.path.isfile('reg')
@case
def hard_link():
    w('r','x'); os.link('r','r2'); assert os.stat('r').st_nlink==2; assert os.path.samefile('r','r2')
@case
def hard_link_old():
    os.link('../old/file','../old/linked'); w('../old/linked','y'); v=r('../old/file'); assert v=='y',v
@case
def hard_linked_before():
    w('../old/h1','y'); v=r('../old/h2'); assert v=='y','splits the link'
@case
def symlink(): os.symlink('r','s'); assert os.readlink('s')=='r'
@case
def o_tmpfile():
    f=os.open('.',os.O_TMPFILE|os.O_RDWR); os.write(f,b'x')
@case
def rename_exchange():
    w('t1','1'); w('t2','2'); libc=ctypes.CDLL(None,use_errno=True)
    if libc.renameat2(-100,b't1',-100,b't2',2): raise OSError(ctypes.get_errno(),'')
    assert r('t1')=='2'
@case
def rename_noreplace():
    w('t3','1'); libc=ctypes.CDLL(None,use_errno=True)
    if libc.renameat2(-100,b't3',-100,b't4',1): raise OSError(ctypes.get_errno(),'')
    assert r('t4')=='1'
@case
def fallocate():
    f=os.open('u',os.O_RDWR|os.O_CREAT)
    libc=ctypes.CDLL(None,use_errno=True)
    if libc.fallocate(f,0,ctypes.c_long(0),ctypes.c_long(4096)): raise OSError(ctypes.get_errno(),'')
@case
def punch_hole():
    f=os.open('u1',os.O_RDWR|os.O_CREAT); os.write(f,b'x'*8192)
    libc=ctypes.CDLL(None,use_errno=True)
    if libc.fallocate(f,3,ctypes.c_long(0),ctypes.c_long(4096)): raise OSError(ctypes.get_errno(),'')
@case
def seek_data():
    f=os.open('u2',os.O_RDWR|os.O_CREAT); os.ftruncate(f,1<<20); os.pwrite(f,b'x',1<<19); v=os.lseek(f,0,os.SEEK_DATA); assert v == 1 << 19, 'sees no holes'
@case
def xattr(): w('v','x'); os.setxattr('v','user.a',b'1'); assert os.getxattr('v','user.a')==b'1'
@case
def flock():
    w('x','x'); a=open('x'); b=open('x'); fcntl.flock(a,fcntl.LOCK_EX)
    try: fcntl.flock(b,fcntl.LOCK_EX|fcntl.LOCK_NB)
    except BlockingIOError: return
    return 'no lock'
@case
def posix_lock():
    a=open('x','r+'); fcntl.lockf(a,fcntl.LOCK_EX)
    if os.fork()==0:
        try: fcntl.lockf(open('x','r+'),fcntl.LOCK_EX|fcntl.LOCK_NB)
        except OSError: os._exit(0)
        os._exit(1)
    assert os.wait()[1]==0,'no lock'
@case
def o_direct():
    f=os.open('y',os.O_RDWR|os.O_CREAT|os.O_DIRECT); m=mmap.mmap(-1,4096); m[:4]=b'data'; os.write(f,m)
@case
def chown(): w('z','x'); os.chown('z',5,5); s=os.stat('z'); return 'ok' if s.st_uid==5 else 'no effect'
@case
def setuid_bit(): w('z1','x'); os.chmod('z1',0o4755); return 'ok' if os.stat('z1').st_mode&0o4000 else 'no effect'
@case
def execute():
    w('run','#!/bin/sh\nexit 3\n'); os.chmod('run',0o755); assert os.spawnl(os.P_WAIT,'./run','run')==3
@case
def write_while_executed():
    shutil.copy('/bin/sleep','sl'); p=subprocess.Popen(['./sl','5'])
    try: open('sl','r+b')
    except OSError as e: assert e.errno==errno.ETXTBSY, e; return
    finally: p.kill(); p.wait()
    return 'may be written to'
@case
def inotify_own():
    libc=ctypes.CDLL(None); i=libc.inotify_init1(os.O_NONBLOCK); libc.inotify_add_watch(i,b'.',0x100); w('in','x'); assert os.read(i,100)
@case
def utime(): w('ut','x'); os.utime('ut',(1,1)); assert os.stat('ut').st_mtime==1
@case
def futime_open():
    w('ut2','x'); f=os.open('ut2',os.O_RDWR); os.utime(f,(1,1)); assert os.stat('ut2').st_mtime==1
@case
def sparse_big(): f=os.open('big',os.O_RDWR|os.O_CREAT); os.ftruncate(f,5<<30); os.pwrite(f,b'x',4<<30); assert os.stat('big').st_size==5<<30; os.unlink('big')
@case
def long_name(): w('n'*255,'x')
@case
def inode_stable():
    w('ino','x'); a=os.stat('ino').st_ino; f=open('ino'); assert os.fstat(f.fileno()).st_ino==a; os.rename('ino','ino2'); assert os.stat('ino2').st_ino==a
