"""The first process of every payload's world, ready to run: init.c, compiled.

The program is 2 KB, needs no library and so runs in any image. It is kept as text because a node has no compiler.
``SOURCE`` is the SHA-256 of the init.c it was made from; a test compares.
"""

from __future__ import annotations

import base64
import os
import platform
import zlib
from pathlib import Path
from typing import Final

from kolejka.common.errors import NodeError
from kolejka.common.files import replacing


def program() -> bytes:
    """The ELF file for this machine. NodeError where there is none."""
    machine = platform.machine()
    if machine not in PROGRAMS:
        raise NodeError(f"payloads can be started on {' and '.join(PROGRAMS)} only; this machine is {machine}")
    return zlib.decompress(base64.b85decode(PROGRAMS[machine]))


def place(folder: Path) -> Path:
    """Put the program into ``folder``, executable for everybody, unless it is there. Its path."""
    path = folder / f"init-{SOURCE[:12]}"
    data = program()
    if not path.is_file() or path.read_bytes() != data:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(path, mode=0o755) as sink:
            sink.write(data)
        os.chmod(path, 0o755)
    return path


# --- written by build_init.py from init.c; do not edit below
SOURCE: Final = "40c968ecf040c3752f6632f2368ce548d3fc86477068b3f1a64192df9379ea82"
PROGRAMS: Final = {
    "x86_64": (
        "c-o~^O>7%Q6dwPDw2-bN4uo>C=tym8NW2k94!_>iCgW&>3Q3>`B$_{zs-(5ZZsS8zyR3~en7#E_IB-Ic1BW6lPGVaMjj4nn%7I1{"
        "H5JN_Be$rcB?(QF<;|?^xS@grBYS4vn|bej@0<7RXi$F5ZnL4%u%lNHlfFiNF8ho68&%~ip!2~!KXM`mzw6@ntx>Wot-rg_18XVL"
        "8%s)Gh0FgO?&2!mB6Njli?{PHfpoWn^qLbZOg|T7pKMUPLg+l9KMSrxLCg{%{e<2&8~ba|@IG=XyO)?bq6gfwh2?4KZRstkOX}?E"
        "Am?w^0WLXtFr?jgME7P!!QtwZ6Ct9vRuj5KXaKw0^uUUn?W#$#)gAM7t7l>n+mL!P7O^9>mn5TgWeE8XP16+T2%RSMs-b{8j))|("
        ">gUEV7Z(V<PUtU|Qa4mkTKn@PIqD(FPKcwc9^*xRusQ$^i9U(H0P)*umT-2W29`TtWf-MWis`K2EbctfFY&wJ6H?YpN&VH>2Xe;F"
        "l@p)x>vI{Wg$*nOR|bQSws8%JfWsYowNV{<FBj*&Y+!M#<zr`KJgYn&(zZ@1H7#TD`Y+)qWL_>TmD4v4gQ{i5Izk*^+QlCUywY4q"
        "?{XN=urNCy6IqhWnk-2nlq<OM(l%_9qjf-G{&}{iPE7X93uEu{11FaCu%o?sS<qhx#m?Jnn+~Pczz{O+0M99es!>5O2!p^<Pg&_L"
        "2(Ge?IA>e}EvF*QAP6qQ$8gt{-;GX(Xbvz6iE%rF9l&03O@y%5SV8z<0hM2-_hfw>k8v{v`((OJsP$wrg$&}@fUOaRX(oUVya|&R"
        "kz4>1R^0)55wk8Lz;?FSDKZ_$-xqbWuzKJN*XB8AQi}B$(G`5asAqT`rTjQzqHWlOgm=p{rO8H%3gj;*Ez=tn>}wnMl|`7{Lc+Xn"
        "nz0e=Z50xCVN0}09{DNZqa_eQy1=jriK`%qYe8`_)I0Kxd*|sH^)mg9)!huywjEG+j9pGFr<fI10Q<x%(o_S#yF#dpPY}HmpGaHf"
        "7{JHabX=x+b~eBej$j{B1a|9K+M*_Jd2)+$KxFuMkkx%Bj>vi+4qIT_bmwixPb6c#`UM;-`UfLpv4X`N0%f|Ks^ce+n>590MsCLV"
        "+}XC|$P)CWf{V%W7G)V*9U7vL?#8xK1@lc+Y)dLjp2`xdv9V{&UF7uzr4;c%2ieu9L+jVu>7RxDV0K6SL$bPgs)qN}cZIl2Hz7M5"
        "WNBc_S%AKe5AB9c-@)~%$1Hl+uRUpMxoCdj9=snE?bwk`)0|@IN|Tm*W+w3lkur7s$D|Au$O!}7ml;voPbP~S=77(&CuJO_KWfWS"
        "Z9A&`K$@r3+>G_h&_QUPJtR~VD`ENx9<Lx*W{2z09Xl0Q&>`P7^%2or?J_NtbeL_R5{396>{ibL`qraIU+^3X^!J?XKJ5{k8k!os"
        "&x+3->Fe(in^f^|QH4;$(7=%LfzsWB8kGKsf*N|y3=a06R?z<*j}|+z>L34a5B{%}hHaO9ZBgglrT?tx@F04)edX$S2(HUT`~B$O"
        "<NpoC{Z~%"
    ),
    "aarch64": (
        "c-o~_U2GIZ9RJVGUVGQx)dDqCi|+NqNL3mjm2k$S+YcoeALQIOO-iYS<I^0RNfncBg@?w*=%NV^2Dqk)a)(B%ka~oKLlT1#A3O~Y"
        "`m%csEwzXoFLDAMe{;7-$`un6Cz;I5|MNG$`OoYQJ@?}C3S(4i3Qdw+eMx#@t-JC_<y{lV*27LG52*!PPr<&}N`9p=RzdfSUe|8Z"
        "<=AT#^xs>pJ3c~Y#^z)_N%YYar(~A1<b{XKjKg_yGjyCrGAc$7I<Wnc=DnA)u<K!Fh9K)CJ=C10P5moq=}-$rHxe1rhN<euT`F0@"
        "H2w6K5X-N?$5Y6~k`7mphbO1Fnp79Wt$17i@Xr3Ti95jK@QQ+tqbum?YBTev5QqOptULR^DA@Q(&mRj=ZWnUKA27q$p|1&&HH}>4"
        ")${Lp$oer57-hiNagaqjRWg{0`9&6WI2o`B#W_8l_Urj8%Zhva9x-O%&#1UR#l>(J=WTJy=9Sn(CH7F6JifFjCs!VE*XAv8>Rhd!"
        "pW=b!w<cNf1~YROu`dDt<A^1OsuE(TI#GyoK(SO-%#*G)Gc(}rBy5Gsa!d$gp}tdc2%FEKU&zm}l-HS=Paq#wi}RAc2|W&Z8k`ik"
        "I789K2gzt8Gwg%T>1J=T$oBPpMC~1)v)tG+GVD>sx=?Rs#>zO59BGl(^+A`92x>+0<p5(-fGjD~h;lRWW4}sX-$33u=xsv3Atrag"
        "rkDBW-n}6V8Bh2r7hFPy<bktzW{c#Vo0-^x{bh&rujKyBb!KJ{<RjoRsL1?_vB~@rkHkQAbV{!>!*(x)>~XRL=Lv$J-As9ViY)sT"
        "$`iP1h2K@KSYn();$_N<6O@|$x;kNRqkJ57A%3RROUUbRUlOsbb(m}9o9nwO47u--ht1690+!>8uxPb3Vb2Rg(<$ftE)08I4{0k{"
        "bXd-}>3MAz<yz(ZeLbbA6g@X940$G|&o`PyJ{hYObu8nuS~DfNS%v%^sC#F=$YD80k3nxYp!WKiCH3!6kt_RvnurInAK^)?aBXld"
        "C#RZ=c1^CGw5fwWd!AWTZH7xZ8fA=e77EtL`mIb<!{%b3YV<qQH{@0o^c!UiVEkiV93Em-b5|AIO|KaqM*Z6TIEQ|+W{>gK%h21n"
        "v)i)b<P$`7vc|i}H`?i?klgR9xF^%|#k+_zUoPvT8L_+2gNQ!}S$c5CO^5q&4+F{L4U6kQ^U}mMPCuyi#_2KOI0t)g1<uNE9#UMJ"
        "&C1QmG2nB6t;2^}#GSw+Y|LtuDqwD=l*F6@mNf9r%!}pMpv$}WSZk+=VZ1*H*uDVV=OLfvHAy+{{7o2JQGX7&83`8NlSAe8Dt1z;"
        "bZ1rpqq9>_HPzG7-rFpy%etY;IfgMiu2_=y=>tm0`IJ)fEKW!c!JFjU!h9MzwUso1du$+A_zbYhxav1Or|nz9n8dpD?z6YTqz*pH"
        "8vI(}TTm~BcwAR5_&z*^UI$tG0-5{@wL{k8%Ic_)jCxAGT{X2wl%q_>+a-07KPx|Ioi!gQN1Bc{V!ENb`<dX%o`Egf`}PFatZiG{"
        "wtCf?_EvXF)V43OFSa+<w}skb1A{SY8;JC7-P^Z&fZF<B-@SWaPmKO|tCk#~S1kI@7Ta~tz4mIE{}R_<ao6z*-5rbTgJt&KvUP*&"
        "zq(A`;{F$CWpZ|(k>6)u-L8MjzxbEhKh>ebTm"
    ),
}
