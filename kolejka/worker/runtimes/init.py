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
SOURCE: Final = "502db706e94020e213844664df4e5c4e332d6ce5e2752d1009fb80ef727d9f5d"
PROGRAMS: Final = {
    "x86_64": (
        "c-o~^O>7%Q6dv1ga7)WN2#L}ZVWB~Fp}5|t2M0vuRo3LWTBJgfHb<HtR214Gx)wn)N?>i2iCKw54;+Go#DxPw9ExP6iEV)#(^IP)"
        "s!BkGL?H=ID1T}KO|!f=yLQr2AtXl0?9SWw-hA(S-;Bpn#<PB(k2Qv$9b&Zlj3wnd>Di0HrVH8<=$B+IEFgV@(%&78xW=>E!ftyu"
        "c6$B?bEuX5_YwA<>I#Sju&({G_z154=z&4!`~unMQ}kC!sTV+80dZLg*6Z3a?WoqL_4f6^Tgz+cWfb<Nt@Xgz_VSy!TKX!$*z5-~"
        "8pO?Jf-+$Ru_&{YIW9^**P;ZW&=ppl@x+15>6dCbJ|Rm|S0*2b=H|`&!MZhK?wB~cf0F#2YJFiYC*PTyoTdxKeYh@D#u71yIYkZZ"
        "z5v+gWWM6#t~FnQTE)Qu3ar(4gHj6HhcAu)x$X7)V8q!DP6h1jgO}<*LZN3@N=3Jl-v-wqJ#rBpzA)^pj~w!jGO-OarS0wj2%U$F"
        "&hHd^b;EHsS+ksg*;eF;tAw<$X~sgVt`vcA`pMvvu$lqteDNHbBv~bbsRWA&s;o_Nb(!jF;UKD5h>{<`6kzK-s@_l?>XFV9hW!dZ"
        "ky5_~@e_SYfN%)_@w1rW@5#68AaeYDV&zqw=5*fv0!~r<V(>WBbe<$-0Jh>oPhE!ign#VWNR<)%*TobsO8D9|2@`CSw-@&l+Q4RM"
        "X)y=Znor4Jy@jNE-IzV#lEIQ&1V%!z*4E8soWn}~Q}iFt@@Th`|A<1Z8M$-2^3GXYT3K#lQh~2n{7QN-`+2yTOA?L*U_u9X-w0&B"
        "m9$DmCAXwGoyXOAZ8qlfDCy<>C0C?62bzu;B-dX4BG~wi&}Dg?nF=kT<kEtm58L|pVRc2D@q58x${j-XzYIxTq&u&hqfp4!BTz7T"
        "$b|`oULGc_PkS^~vFr`A73bxQijMWjR#ogIl(pKFlms?^^ie!>{>)>~iRJX_H}!`x?Dx!XP-~&mnKrZ2J1dq^ILNWNds5V%J#Ic-"
        "4DpEDw9S6$!sL8<hl^(Q>O+oI8(aMKCNhswn~1DC&iQLHwcKEq;xs90t-Om)d!-2%YwkzL&kzLbqC*=Kd!5zHAta`M&OPBh2HrWS"
        "2a+Vp@m)#Ym4=v*SwpNE;;)8e@ambuB5!2wQJtkBN5XnzQVJ%w^ftom?&^9f64i$XUOs**qISeOV(}-{gHH?%52zg(b)RQqEOzF^"
        "8S^#s_yCKU!=omP4W2%Ea`=?V{{OhwJ1wpMxVLY=uN%X6M|_)Si{D|-c)t^S+1=x}J_C2bHRZ+cX8*qb-yvt^)&"
    ),
    "aarch64": (
        "c-pO0O>7%Q6n?Y2HfzTYX-P#Og>_0rZJ<_LMG$kzCN2=QTx#~f0cqm~gCR}9ttG;b<gv=ZG^Z^{IYiJzaEL9TCa4fxaYz*@io^l2"
        "LL9iTHqcnHsA|C>D`<u{>orQ9RN}x$qnY>SdvE4@^UdU*dHz{}5NI_4mVjFepgOkd`ZqoQLeMvWI2Ak~IarT_Z?;xkYlK#uJIbzk"
        ">bLC6Uij~=%N-vAYFZ)~`v5-rMTAmSB&D?ns96!k(kQNpP%tGNJ=pPVKP-#-kKXsx4=vGKTI=9GY6=dH-hta>?Ec&DE);KLZXc-j"
        "U=SK-0JPbAY2p@R)9bibt(%$@?w*56)a-NTmaN)XqnQ2;WXL|y{OGSdLf$6n*9VdS{rcymk>3lNby6_adZ;<KOHL*I*g(k5mqv~^"
        "@C=o>U<?Pr;64SQu{wMCr)og81Bi<gYO1&=S%y=6`(f|kLCAct2ecbDTe^rbI`P#n+D!X701XxWye6_p%_QHO%<kY*c(Td2l2gCf"
        "jc=isnjxWC4{r1G@iRd;d^zH$iCPX~wG}Yfr(#h?T<s9pHIW##7r>UWR`nHP9L89-0x@<HY&HYs->>+KH685v`y79n=dFmrl9dDF"
        "eY^(+g7xGdOyhMZJV?z^r*88*&Zcz1qP4{|MTJJC!8B_{jVb#{CeP=(YAa`;5#jTkT2>^;T))LM&STU^rg%--`9c?U&eA7=F^KiM"
        "j=8tj$GLMwwW}A1F(0C4-qES22%KNeTWqb*0$k-ju9Iq<IQJOwfMJEeSf^kF1O6#rz&F)_>nE^ZCLQ&>ggTUIB9HfLU4R&NV`D~&"
        "s8|mR_35p%t4{%RSGhL8KQ$yn>;&dap{7?QaR#5MvAPW36V%25)W$GsLq}~y7}GL{@w(dKZ-5eUW*G4S#805jH4?^p3?b$K_P4li"
        "a(t8DNmcZf=6iSQLXlzdrU>6kJ=(Q70kjI@WiQq?Kraa{W>nZ*nnO+%<fHqbfjUp%XQFK!g0jQ&aVT@1_aMh*<f!1jH*w9z@lpOZ"
        "`e8AT@3Vy1apd|H`ZvVR5+BE_OncSOa}%S0cY*c3)PA3Atf?&py!AZpYmKSp%9vn;JE^%I7h={llv{6)Ab$&M`|B2)u48^B42$@N"
        "HO!l^x6nq-OJ5(qM*n8opJ;FYugE(IkR~4{y#dAX^<W?Qi?Q&wf9(nEFKzSnxc}~(=o^u6GSo?hk3*l}KJZ*T{&XmOJaziD<k`^C"
        "W6@*LBZrUnN8Bku^nCh!_FOi38lu_MWEP^SwEoJu<U|UhV{c4Mq|RpHe`y_@8+PxGf4|v2lkUW~nXt!=7hL;AkLr%D-G-Oj>|Qti"
        "NSlAbjaS<IWS3Fgh1Yj({K31#x7t6)&<Oz"
    ),
}
