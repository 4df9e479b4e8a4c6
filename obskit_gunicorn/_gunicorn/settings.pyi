# Written by docs/generate_settings.py from Gunicorn and from config.py. Do not edit.
#
# The descriptions of Gunicorn's settings are Gunicorn's own:
#
# 2009-2026 (c) Benoît Chesneau <benoitc@gunicorn.org>
# 2009-2015 (c) Paul J. Davis <paul.joseph.davis@gmail.com>
#
# Permission is hereby granted, free of charge, to any person
# obtaining a copy of this software and associated documentation
# files (the "Software"), to deal in the Software without
# restriction, including without limitation the rights to use,
# copy, modify, merge, publish, distribute, sublicense, and/or sell
# copies of the Software, and to permit persons to whom the
# Software is furnished to do so, subject to the following
# conditions:
#
# The above copyright notice and this permission notice shall be
# included in all copies or substantial portions of the Software.
#
# THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND,
# EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES
# OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
# NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT
# HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY,
# WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING
# FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR
# OTHER DEALINGS IN THE SOFTWARE.

"""The settings of Gunicorn and our options, for type checkers and editors alone.

To them, :class:`Settings` is the base of the configuration class. There is no such module at run
time: a setting that a class does not assign must not seem to be set.

An attribute that a subclass may replace by a value *and* by a property cannot be declared in one
way for every checker. mypy lets both replace what a decorator has made. Pyright, and the editors
that are built on it, let both replace a field of a frozen dataclass whose type has a property's
``__get__``; and of all members they complete only such variables in the body of a class.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from obskit_gunicorn._gunicorn.contract import Configuration

MYPY: bool  # mypy takes it as true

_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)

class Computed(Protocol[_T_co]):
    """A property that stands in the place of a setting."""

    def __get__(self, instance: Any, owner: Any = ..., /) -> _T_co: ...

class DidYouMean(Generic[_T]):
    """The type of a name that is nearly a setting: nothing is of this type."""

def _setting(getter: Callable[[Any], _T]) -> _T | Computed[_T]: ...
def _nearly(getter: Callable[[Any], _T]) -> _T: ...

class NearlySettings(Configuration):
    """Names that are nearly right, each with what was probably meant.

    At run time such a name is a warning. As methods, editors do not complete them.
    """

    @_nearly
    def access_log(self) -> DidYouMean[Literal["accesslog"]]: ...
    @_nearly
    def access_log_formats(self) -> DidYouMean[Literal["access_log_format"]]: ...
    @_nearly
    def access_logfile(self) -> DidYouMean[Literal["accesslog"]]: ...
    @_nearly
    def access_logformat(self) -> DidYouMean[Literal["access_log_format"]]: ...
    @_nearly
    def accesslogformat(self) -> DidYouMean[Literal["access_log_format"]]: ...
    @_nearly
    def asgi_disconnect_grace_periods(self) -> DidYouMean[Literal["asgi_disconnect_grace_period"]]: ...
    @_nearly
    def asgi_lifespans(self) -> DidYouMean[Literal["asgi_lifespan"]]: ...
    @_nearly
    def asgi_loops(self) -> DidYouMean[Literal["asgi_loop"]]: ...
    @_nearly
    def asgilifespan(self) -> DidYouMean[Literal["asgi_lifespan"]]: ...
    @_nearly
    def asgiloop(self) -> DidYouMean[Literal["asgi_loop"]]: ...
    @_nearly
    def back_log(self) -> DidYouMean[Literal["backlog"]]: ...
    @_nearly
    def ca_cert(self) -> DidYouMean[Literal["ca_certs"]]: ...
    @_nearly
    def cacerts(self) -> DidYouMean[Literal["ca_certs"]]: ...
    @_nearly
    def capture_outputs(self) -> DidYouMean[Literal["capture_output"]]: ...
    @_nearly
    def captureoutput(self) -> DidYouMean[Literal["capture_output"]]: ...
    @_nearly
    def casefold_http_methods(self) -> DidYouMean[Literal["casefold_http_method"]]: ...
    @_nearly
    def casefoldhttpmethod(self) -> DidYouMean[Literal["casefold_http_method"]]: ...
    @_nearly
    def cert_file(self) -> DidYouMean[Literal["certfile"]]: ...
    @_nearly
    def cert_req(self) -> DidYouMean[Literal["cert_reqs"]]: ...
    @_nearly
    def certreqs(self) -> DidYouMean[Literal["cert_reqs"]]: ...
    @_nearly
    def certs_reqs(self) -> DidYouMean[Literal["cert_reqs"]]: ...
    @_nearly
    def ch_dir(self) -> DidYouMean[Literal["chdir"]]: ...
    @_nearly
    def check_configs(self) -> DidYouMean[Literal["check_config"]]: ...
    @_nearly
    def checkconfig(self) -> DidYouMean[Literal["check_config"]]: ...
    @_nearly
    def childexit(self) -> DidYouMean[Literal["child_exit"]]: ...
    @_nearly
    def cipher(self) -> DidYouMean[Literal["ciphers"]]: ...
    @_nearly
    def control_socket_disables(self) -> DidYouMean[Literal["control_socket_disable"]]: ...
    @_nearly
    def control_socket_modes(self) -> DidYouMean[Literal["control_socket_mode"]]: ...
    @_nearly
    def control_sockets(self) -> DidYouMean[Literal["control_socket"]]: ...
    @_nearly
    def controlsocket(self) -> DidYouMean[Literal["control_socket"]]: ...
    @_nearly
    def controlsocketdisable(self) -> DidYouMean[Literal["control_socket_disable"]]: ...
    @_nearly
    def controlsocketmode(self) -> DidYouMean[Literal["control_socket_mode"]]: ...
    @_nearly
    def default_proc_names(self) -> DidYouMean[Literal["default_proc_name"]]: ...
    @_nearly
    def defaultprocname(self) -> DidYouMean[Literal["default_proc_name"]]: ...
    @_nearly
    def dirty_app(self) -> DidYouMean[Literal["dirty_apps"]]: ...
    @_nearly
    def dirty_graceful_time_out(self) -> DidYouMean[Literal["dirty_graceful_timeout"]]: ...
    @_nearly
    def dirty_graceful_timeouts(self) -> DidYouMean[Literal["dirty_graceful_timeout"]]: ...
    @_nearly
    def dirty_thread(self) -> DidYouMean[Literal["dirty_threads"]]: ...
    @_nearly
    def dirty_time_out(self) -> DidYouMean[Literal["dirty_timeout"]]: ...
    @_nearly
    def dirty_timeouts(self) -> DidYouMean[Literal["dirty_timeout"]]: ...
    @_nearly
    def dirty_worker(self) -> DidYouMean[Literal["dirty_workers"]]: ...
    @_nearly
    def dirtyapps(self) -> DidYouMean[Literal["dirty_apps"]]: ...
    @_nearly
    def dirtygracefultimeout(self) -> DidYouMean[Literal["dirty_graceful_timeout"]]: ...
    @_nearly
    def dirtypostfork(self) -> DidYouMean[Literal["dirty_post_fork"]]: ...
    @_nearly
    def dirtythreads(self) -> DidYouMean[Literal["dirty_threads"]]: ...
    @_nearly
    def dirtytimeout(self) -> DidYouMean[Literal["dirty_timeout"]]: ...
    @_nearly
    def dirtyworkerexit(self) -> DidYouMean[Literal["dirty_worker_exit"]]: ...
    @_nearly
    def dirtyworkerinit(self) -> DidYouMean[Literal["dirty_worker_init"]]: ...
    @_nearly
    def dirtyworkers(self) -> DidYouMean[Literal["dirty_workers"]]: ...
    @_nearly
    def disable_redirect_access_to_sys_log(self) -> DidYouMean[Literal["disable_redirect_access_to_syslog"]]: ...
    @_nearly
    def disable_redirect_access_to_syslogs(self) -> DidYouMean[Literal["disable_redirect_access_to_syslog"]]: ...
    @_nearly
    def do_handshake_on_connects(self) -> DidYouMean[Literal["do_handshake_on_connect"]]: ...
    @_nearly
    def dogstatsd_tag(self) -> DidYouMean[Literal["dogstatsd_tags"]]: ...
    @_nearly
    def dogstatsdtags(self) -> DidYouMean[Literal["dogstatsd_tags"]]: ...
    @_nearly
    def enable_backlog_metrics(self) -> DidYouMean[Literal["enable_backlog_metric"]]: ...
    @_nearly
    def enable_stdio_inheritances(self) -> DidYouMean[Literal["enable_stdio_inheritance"]]: ...
    @_nearly
    def enablebacklogmetric(self) -> DidYouMean[Literal["enable_backlog_metric"]]: ...
    @_nearly
    def enablestdioinheritance(self) -> DidYouMean[Literal["enable_stdio_inheritance"]]: ...
    @_nearly
    def error_log(self) -> DidYouMean[Literal["errorlog"]]: ...
    @_nearly
    def error_logfile(self) -> DidYouMean[Literal["errorlog"]]: ...
    @_nearly
    def forwarded_allow_ip(self) -> DidYouMean[Literal["forwarded_allow_ips"]]: ...
    @_nearly
    def forwardedallowips(self) -> DidYouMean[Literal["forwarded_allow_ips"]]: ...
    @_nearly
    def forwarder_header(self) -> DidYouMean[Literal["forwarder_headers"]]: ...
    @_nearly
    def forwarderheaders(self) -> DidYouMean[Literal["forwarder_headers"]]: ...
    @_nearly
    def graceful_time_out(self) -> DidYouMean[Literal["graceful_timeout"]]: ...
    @_nearly
    def graceful_timeouts(self) -> DidYouMean[Literal["graceful_timeout"]]: ...
    @_nearly
    def gracefultimeout(self) -> DidYouMean[Literal["graceful_timeout"]]: ...
    @_nearly
    def header_maps(self) -> DidYouMean[Literal["header_map"]]: ...
    @_nearly
    def headermap(self) -> DidYouMean[Literal["header_map"]]: ...
    @_nearly
    def headers_map(self) -> DidYouMean[Literal["header_map"]]: ...
    @_nearly
    def http2_cleartexts(self) -> DidYouMean[Literal["http2_cleartext"]]: ...
    @_nearly
    def http2_initial_window_sizes(self) -> DidYouMean[Literal["http2_initial_window_size"]]: ...
    @_nearly
    def http2_max_concurrent_stream(self) -> DidYouMean[Literal["http2_max_concurrent_streams"]]: ...
    @_nearly
    def http2_max_frame_sizes(self) -> DidYouMean[Literal["http2_max_frame_size"]]: ...
    @_nearly
    def http2_max_header_list_sizes(self) -> DidYouMean[Literal["http2_max_header_list_size"]]: ...
    @_nearly
    def http2cleartext(self) -> DidYouMean[Literal["http2_cleartext"]]: ...
    @_nearly
    def http_parsers(self) -> DidYouMean[Literal["http_parser"]]: ...
    @_nearly
    def http_protocol(self) -> DidYouMean[Literal["http_protocols"]]: ...
    @_nearly
    def httpparser(self) -> DidYouMean[Literal["http_parser"]]: ...
    @_nearly
    def httpprotocols(self) -> DidYouMean[Literal["http_protocols"]]: ...
    @_nearly
    def initgroup(self) -> DidYouMean[Literal["initgroups"]]: ...
    @_nearly
    def keep_alive(self) -> DidYouMean[Literal["keepalive"]]: ...
    @_nearly
    def key_file(self) -> DidYouMean[Literal["keyfile"]]: ...
    @_nearly
    def limit_request_field(self) -> DidYouMean[Literal["limit_request_fields"]]: ...
    @_nearly
    def limit_request_field_sizes(self) -> DidYouMean[Literal["limit_request_field_size"]]: ...
    @_nearly
    def limit_request_lines(self) -> DidYouMean[Literal["limit_request_line"]]: ...
    @_nearly
    def limitrequestfields(self) -> DidYouMean[Literal["limit_request_fields"]]: ...
    @_nearly
    def limitrequestline(self) -> DidYouMean[Literal["limit_request_line"]]: ...
    @_nearly
    def log_config(self) -> DidYouMean[Literal["logconfig"]]: ...
    @_nearly
    def log_config_dict(self) -> DidYouMean[Literal["logconfig_dict"]]: ...
    @_nearly
    def log_config_json(self) -> DidYouMean[Literal["logconfig_json"]]: ...
    @_nearly
    def log_file(self) -> DidYouMean[Literal["errorlog"]]: ...
    @_nearly
    def log_level(self) -> DidYouMean[Literal["loglevel"]]: ...
    @_nearly
    def log_syslog(self) -> DidYouMean[Literal["syslog"]]: ...
    @_nearly
    def log_syslog_facility(self) -> DidYouMean[Literal["syslog_facility"]]: ...
    @_nearly
    def log_syslog_prefix(self) -> DidYouMean[Literal["syslog_prefix"]]: ...
    @_nearly
    def log_syslog_to(self) -> DidYouMean[Literal["syslog_addr"]]: ...
    @_nearly
    def logconfig_dicts(self) -> DidYouMean[Literal["logconfig_dict"]]: ...
    @_nearly
    def logconfig_jsons(self) -> DidYouMean[Literal["logconfig_json"]]: ...
    @_nearly
    def logconfigdict(self) -> DidYouMean[Literal["logconfig_dict"]]: ...
    @_nearly
    def logconfigjson(self) -> DidYouMean[Literal["logconfig_json"]]: ...
    @_nearly
    def loggerclass(self) -> DidYouMean[Literal["logger_class"]]: ...
    @_nearly
    def max_request(self) -> DidYouMean[Literal["max_requests"]]: ...
    @_nearly
    def max_requests_jitters(self) -> DidYouMean[Literal["max_requests_jitter"]]: ...
    @_nearly
    def maxrequests(self) -> DidYouMean[Literal["max_requests"]]: ...
    @_nearly
    def maxrequestsjitter(self) -> DidYouMean[Literal["max_requests_jitter"]]: ...
    @_nearly
    def metric_auth_file(self) -> DidYouMean[Literal["metrics_auth_file"]]: ...
    @_nearly
    def metric_auth_probes(self) -> DidYouMean[Literal["metrics_auth_probes"]]: ...
    @_nearly
    def metric_bearer_token_file(self) -> DidYouMean[Literal["metrics_bearer_token_file"]]: ...
    @_nearly
    def metric_bind(self) -> DidYouMean[Literal["metrics_bind"]]: ...
    @_nearly
    def metric_buckets(self) -> DidYouMean[Literal["metrics_buckets"]]: ...
    @_nearly
    def metric_ca_certs(self) -> DidYouMean[Literal["metrics_ca_certs"]]: ...
    @_nearly
    def metric_certfile(self) -> DidYouMean[Literal["metrics_certfile"]]: ...
    @_nearly
    def metric_collectors(self) -> DidYouMean[Literal["metrics_collectors"]]: ...
    @_nearly
    def metric_exemplars(self) -> DidYouMean[Literal["metrics_exemplars"]]: ...
    @_nearly
    def metric_fleet_path(self) -> DidYouMean[Literal["metrics_fleet_path"]]: ...
    @_nearly
    def metric_host(self) -> DidYouMean[Literal["metrics_host"]]: ...
    @_nearly
    def metric_keep(self) -> DidYouMean[Literal["metrics_keep"]]: ...
    @_nearly
    def metric_keyfile(self) -> DidYouMean[Literal["metrics_keyfile"]]: ...
    @_nearly
    def metric_max_bytes(self) -> DidYouMean[Literal["metrics_max_bytes"]]: ...
    @_nearly
    def metric_max_series(self) -> DidYouMean[Literal["metrics_max_series"]]: ...
    @_nearly
    def metric_page(self) -> DidYouMean[Literal["metrics_page"]]: ...
    @_nearly
    def metric_path(self) -> DidYouMean[Literal["metrics_path"]]: ...
    @_nearly
    def metric_push(self) -> DidYouMean[Literal["metrics_push"]]: ...
    @_nearly
    def metric_redis(self) -> DidYouMean[Literal["metrics_redis"]]: ...
    @_nearly
    def metric_redis_interval(self) -> DidYouMean[Literal["metrics_redis_interval"]]: ...
    @_nearly
    def metric_redis_name(self) -> DidYouMean[Literal["metrics_redis_name"]]: ...
    @_nearly
    def metric_requests(self) -> DidYouMean[Literal["metrics_requests"]]: ...
    @_nearly
    def metric_routes(self) -> DidYouMean[Literal["metrics_routes"]]: ...
    @_nearly
    def metric_standard(self) -> DidYouMean[Literal["metrics_standard"]]: ...
    @_nearly
    def metrics_auth_files(self) -> DidYouMean[Literal["metrics_auth_file"]]: ...
    @_nearly
    def metrics_auth_probe(self) -> DidYouMean[Literal["metrics_auth_probes"]]: ...
    @_nearly
    def metrics_bearer_token_files(self) -> DidYouMean[Literal["metrics_bearer_token_file"]]: ...
    @_nearly
    def metrics_binds(self) -> DidYouMean[Literal["metrics_bind"]]: ...
    @_nearly
    def metrics_bucket(self) -> DidYouMean[Literal["metrics_buckets"]]: ...
    @_nearly
    def metrics_ca_cert(self) -> DidYouMean[Literal["metrics_ca_certs"]]: ...
    @_nearly
    def metrics_cert_file(self) -> DidYouMean[Literal["metrics_certfile"]]: ...
    @_nearly
    def metrics_certfiles(self) -> DidYouMean[Literal["metrics_certfile"]]: ...
    @_nearly
    def metrics_collector(self) -> DidYouMean[Literal["metrics_collectors"]]: ...
    @_nearly
    def metrics_exemplar(self) -> DidYouMean[Literal["metrics_exemplars"]]: ...
    @_nearly
    def metrics_fleet_paths(self) -> DidYouMean[Literal["metrics_fleet_path"]]: ...
    @_nearly
    def metrics_hosts(self) -> DidYouMean[Literal["metrics_host"]]: ...
    @_nearly
    def metrics_keeps(self) -> DidYouMean[Literal["metrics_keep"]]: ...
    @_nearly
    def metrics_key_file(self) -> DidYouMean[Literal["metrics_keyfile"]]: ...
    @_nearly
    def metrics_keyfiles(self) -> DidYouMean[Literal["metrics_keyfile"]]: ...
    @_nearly
    def metrics_max_byte(self) -> DidYouMean[Literal["metrics_max_bytes"]]: ...
    @_nearly
    def metrics_max_serie(self) -> DidYouMean[Literal["metrics_max_series"]]: ...
    @_nearly
    def metrics_pages(self) -> DidYouMean[Literal["metrics_page"]]: ...
    @_nearly
    def metrics_paths(self) -> DidYouMean[Literal["metrics_path"]]: ...
    @_nearly
    def metrics_pushs(self) -> DidYouMean[Literal["metrics_push"]]: ...
    @_nearly
    def metrics_redis_intervals(self) -> DidYouMean[Literal["metrics_redis_interval"]]: ...
    @_nearly
    def metrics_redis_names(self) -> DidYouMean[Literal["metrics_redis_name"]]: ...
    @_nearly
    def metrics_request(self) -> DidYouMean[Literal["metrics_requests"]]: ...
    @_nearly
    def metrics_route(self) -> DidYouMean[Literal["metrics_routes"]]: ...
    @_nearly
    def metrics_standards(self) -> DidYouMean[Literal["metrics_standard"]]: ...
    @_nearly
    def metricsauthfile(self) -> DidYouMean[Literal["metrics_auth_file"]]: ...
    @_nearly
    def metricsauthprobes(self) -> DidYouMean[Literal["metrics_auth_probes"]]: ...
    @_nearly
    def metricsbind(self) -> DidYouMean[Literal["metrics_bind"]]: ...
    @_nearly
    def metricsbuckets(self) -> DidYouMean[Literal["metrics_buckets"]]: ...
    @_nearly
    def metricscacerts(self) -> DidYouMean[Literal["metrics_ca_certs"]]: ...
    @_nearly
    def metricscertfile(self) -> DidYouMean[Literal["metrics_certfile"]]: ...
    @_nearly
    def metricscollectors(self) -> DidYouMean[Literal["metrics_collectors"]]: ...
    @_nearly
    def metricsexemplars(self) -> DidYouMean[Literal["metrics_exemplars"]]: ...
    @_nearly
    def metricsfleetpath(self) -> DidYouMean[Literal["metrics_fleet_path"]]: ...
    @_nearly
    def metricshost(self) -> DidYouMean[Literal["metrics_host"]]: ...
    @_nearly
    def metricskeep(self) -> DidYouMean[Literal["metrics_keep"]]: ...
    @_nearly
    def metricskeyfile(self) -> DidYouMean[Literal["metrics_keyfile"]]: ...
    @_nearly
    def metricsmaxbytes(self) -> DidYouMean[Literal["metrics_max_bytes"]]: ...
    @_nearly
    def metricsmaxseries(self) -> DidYouMean[Literal["metrics_max_series"]]: ...
    @_nearly
    def metricspage(self) -> DidYouMean[Literal["metrics_page"]]: ...
    @_nearly
    def metricspath(self) -> DidYouMean[Literal["metrics_path"]]: ...
    @_nearly
    def metricspush(self) -> DidYouMean[Literal["metrics_push"]]: ...
    @_nearly
    def metricsredis(self) -> DidYouMean[Literal["metrics_redis"]]: ...
    @_nearly
    def metricsredisinterval(self) -> DidYouMean[Literal["metrics_redis_interval"]]: ...
    @_nearly
    def metricsredisname(self) -> DidYouMean[Literal["metrics_redis_name"]]: ...
    @_nearly
    def metricsrequests(self) -> DidYouMean[Literal["metrics_requests"]]: ...
    @_nearly
    def metricsroutes(self) -> DidYouMean[Literal["metrics_routes"]]: ...
    @_nearly
    def metricsstandard(self) -> DidYouMean[Literal["metrics_standard"]]: ...
    @_nearly
    def multiproc_dirs(self) -> DidYouMean[Literal["multiproc_dir"]]: ...
    @_nearly
    def multiprocdir(self) -> DidYouMean[Literal["multiproc_dir"]]: ...
    @_nearly
    def no_control_socket(self) -> DidYouMean[Literal["control_socket_disable"]]: ...
    @_nearly
    def no_sendfile(self) -> DidYouMean[Literal["sendfile"]]: ...
    @_nearly
    def nworker_changed(self) -> DidYouMean[Literal["nworkers_changed"]]: ...
    @_nearly
    def nworkerschanged(self) -> DidYouMean[Literal["nworkers_changed"]]: ...
    @_nearly
    def on_dirty_start(self) -> DidYouMean[Literal["on_dirty_starting"]]: ...
    @_nearly
    def on_start(self) -> DidYouMean[Literal["on_starting"]]: ...
    @_nearly
    def ondirtystarting(self) -> DidYouMean[Literal["on_dirty_starting"]]: ...
    @_nearly
    def onexit(self) -> DidYouMean[Literal["on_exit"]]: ...
    @_nearly
    def onreload(self) -> DidYouMean[Literal["on_reload"]]: ...
    @_nearly
    def onstarting(self) -> DidYouMean[Literal["on_starting"]]: ...
    @_nearly
    def paste_global(self) -> DidYouMean[Literal["raw_paste_global_conf"]]: ...
    @_nearly
    def paster(self) -> DidYouMean[Literal["paste"]]: ...
    @_nearly
    def permit_obsolete_fold(self) -> DidYouMean[Literal["permit_obsolete_folding"]]: ...
    @_nearly
    def permit_obsolete_foldings(self) -> DidYouMean[Literal["permit_obsolete_folding"]]: ...
    @_nearly
    def permit_unconventional_http_methods(self) -> DidYouMean[Literal["permit_unconventional_http_method"]]: ...
    @_nearly
    def permit_unconventional_http_versions(self) -> DidYouMean[Literal["permit_unconventional_http_version"]]: ...
    @_nearly
    def permitobsoletefolding(self) -> DidYouMean[Literal["permit_obsolete_folding"]]: ...
    @_nearly
    def pid_file(self) -> DidYouMean[Literal["pidfile"]]: ...
    @_nearly
    def post_requests(self) -> DidYouMean[Literal["post_request"]]: ...
    @_nearly
    def postfork(self) -> DidYouMean[Literal["post_fork"]]: ...
    @_nearly
    def postrequest(self) -> DidYouMean[Literal["post_request"]]: ...
    @_nearly
    def postworkerinit(self) -> DidYouMean[Literal["post_worker_init"]]: ...
    @_nearly
    def pre_requests(self) -> DidYouMean[Literal["pre_request"]]: ...
    @_nearly
    def preexec(self) -> DidYouMean[Literal["pre_exec"]]: ...
    @_nearly
    def prefork(self) -> DidYouMean[Literal["pre_fork"]]: ...
    @_nearly
    def preload(self) -> DidYouMean[Literal["preload_app"]]: ...
    @_nearly
    def preload_apps(self) -> DidYouMean[Literal["preload_app"]]: ...
    @_nearly
    def preloadapp(self) -> DidYouMean[Literal["preload_app"]]: ...
    @_nearly
    def prerequest(self) -> DidYouMean[Literal["pre_request"]]: ...
    @_nearly
    def print_configs(self) -> DidYouMean[Literal["print_config"]]: ...
    @_nearly
    def printconfig(self) -> DidYouMean[Literal["print_config"]]: ...
    @_nearly
    def proc_names(self) -> DidYouMean[Literal["proc_name"]]: ...
    @_nearly
    def procname(self) -> DidYouMean[Literal["proc_name"]]: ...
    @_nearly
    def protocols(self) -> DidYouMean[Literal["protocol"]]: ...
    @_nearly
    def proxy_allow_from(self) -> DidYouMean[Literal["proxy_allow_ips"]]: ...
    @_nearly
    def proxy_allow_ip(self) -> DidYouMean[Literal["proxy_allow_ips"]]: ...
    @_nearly
    def proxy_protocols(self) -> DidYouMean[Literal["proxy_protocol"]]: ...
    @_nearly
    def proxyallowips(self) -> DidYouMean[Literal["proxy_allow_ips"]]: ...
    @_nearly
    def proxyprotocol(self) -> DidYouMean[Literal["proxy_protocol"]]: ...
    @_nearly
    def python_path(self) -> DidYouMean[Literal["pythonpath"]]: ...
    @_nearly
    def raw_envs(self) -> DidYouMean[Literal["raw_env"]]: ...
    @_nearly
    def raw_paste_global_confs(self) -> DidYouMean[Literal["raw_paste_global_conf"]]: ...
    @_nearly
    def rawenv(self) -> DidYouMean[Literal["raw_env"]]: ...
    @_nearly
    def reload_engines(self) -> DidYouMean[Literal["reload_engine"]]: ...
    @_nearly
    def reload_extra_file(self) -> DidYouMean[Literal["reload_extra_files"]]: ...
    @_nearly
    def reloadengine(self) -> DidYouMean[Literal["reload_engine"]]: ...
    @_nearly
    def reloadextrafiles(self) -> DidYouMean[Literal["reload_extra_files"]]: ...
    @_nearly
    def reuse_ports(self) -> DidYouMean[Literal["reuse_port"]]: ...
    @_nearly
    def reuseport(self) -> DidYouMean[Literal["reuse_port"]]: ...
    @_nearly
    def root_paths(self) -> DidYouMean[Literal["root_path"]]: ...
    @_nearly
    def rootpath(self) -> DidYouMean[Literal["root_path"]]: ...
    @_nearly
    def secure_scheme_header(self) -> DidYouMean[Literal["secure_scheme_headers"]]: ...
    @_nearly
    def secureschemeheaders(self) -> DidYouMean[Literal["secure_scheme_headers"]]: ...
    @_nearly
    def send_file(self) -> DidYouMean[Literal["sendfile"]]: ...
    @_nearly
    def ssl_versions(self) -> DidYouMean[Literal["ssl_version"]]: ...
    @_nearly
    def sslcontext(self) -> DidYouMean[Literal["ssl_context"]]: ...
    @_nearly
    def sslversion(self) -> DidYouMean[Literal["ssl_version"]]: ...
    @_nearly
    def statsd_hosts(self) -> DidYouMean[Literal["statsd_host"]]: ...
    @_nearly
    def statsdhost(self) -> DidYouMean[Literal["statsd_host"]]: ...
    @_nearly
    def statsdprefix(self) -> DidYouMean[Literal["statsd_prefix"]]: ...
    @_nearly
    def strip_header_space(self) -> DidYouMean[Literal["strip_header_spaces"]]: ...
    @_nearly
    def stripheaderspaces(self) -> DidYouMean[Literal["strip_header_spaces"]]: ...
    @_nearly
    def suppress_ragged_eof(self) -> DidYouMean[Literal["suppress_ragged_eofs"]]: ...
    @_nearly
    def suppressraggedeofs(self) -> DidYouMean[Literal["suppress_ragged_eofs"]]: ...
    @_nearly
    def sys_log(self) -> DidYouMean[Literal["syslog"]]: ...
    @_nearly
    def sys_log_addr(self) -> DidYouMean[Literal["syslog_addr"]]: ...
    @_nearly
    def sys_log_facility(self) -> DidYouMean[Literal["syslog_facility"]]: ...
    @_nearly
    def sys_log_prefix(self) -> DidYouMean[Literal["syslog_prefix"]]: ...
    @_nearly
    def syslog_addrs(self) -> DidYouMean[Literal["syslog_addr"]]: ...
    @_nearly
    def syslogaddr(self) -> DidYouMean[Literal["syslog_addr"]]: ...
    @_nearly
    def syslogfacility(self) -> DidYouMean[Literal["syslog_facility"]]: ...
    @_nearly
    def syslogprefix(self) -> DidYouMean[Literal["syslog_prefix"]]: ...
    @_nearly
    def thread(self) -> DidYouMean[Literal["threads"]]: ...
    @_nearly
    def time_out(self) -> DidYouMean[Literal["timeout"]]: ...
    @_nearly
    def tmp_upload_dirs(self) -> DidYouMean[Literal["tmp_upload_dir"]]: ...
    @_nearly
    def tmpuploaddir(self) -> DidYouMean[Literal["tmp_upload_dir"]]: ...
    @_nearly
    def uwsgi_allow_from(self) -> DidYouMean[Literal["uwsgi_allow_ips"]]: ...
    @_nearly
    def uwsgi_allow_ip(self) -> DidYouMean[Literal["uwsgi_allow_ips"]]: ...
    @_nearly
    def uwsgiallowips(self) -> DidYouMean[Literal["uwsgi_allow_ips"]]: ...
    @_nearly
    def websocket_max_message_sizes(self) -> DidYouMean[Literal["websocket_max_message_size"]]: ...
    @_nearly
    def whenready(self) -> DidYouMean[Literal["when_ready"]]: ...
    @_nearly
    def worker(self) -> DidYouMean[Literal["workers"]]: ...
    @_nearly
    def worker_connection(self) -> DidYouMean[Literal["worker_connections"]]: ...
    @_nearly
    def worker_tmp_dirs(self) -> DidYouMean[Literal["worker_tmp_dir"]]: ...
    @_nearly
    def workerabort(self) -> DidYouMean[Literal["worker_abort"]]: ...
    @_nearly
    def workerclass(self) -> DidYouMean[Literal["worker_class"]]: ...
    @_nearly
    def workerconnections(self) -> DidYouMean[Literal["worker_connections"]]: ...
    @_nearly
    def workerexit(self) -> DidYouMean[Literal["worker_exit"]]: ...
    @_nearly
    def workerint(self) -> DidYouMean[Literal["worker_int"]]: ...
    @_nearly
    def workers_abort(self) -> DidYouMean[Literal["worker_abort"]]: ...
    @_nearly
    def workers_class(self) -> DidYouMean[Literal["worker_class"]]: ...
    @_nearly
    def workers_connections(self) -> DidYouMean[Literal["worker_connections"]]: ...
    @_nearly
    def workers_exit(self) -> DidYouMean[Literal["worker_exit"]]: ...
    @_nearly
    def workers_int(self) -> DidYouMean[Literal["worker_int"]]: ...
    @_nearly
    def workers_tmp_dir(self) -> DidYouMean[Literal["worker_tmp_dir"]]: ...
    @_nearly
    def workertmpdir(self) -> DidYouMean[Literal["worker_tmp_dir"]]: ...
    @_nearly
    def wsgi_apps(self) -> DidYouMean[Literal["wsgi_app"]]: ...
    @_nearly
    def wsgiapp(self) -> DidYouMean[Literal["wsgi_app"]]: ...

if MYPY:
    class Settings(NearlySettings):
        """Every setting and option."""

        @_setting
        def config(self) -> str: ...
        @_setting
        def wsgi_app(self) -> str | None: ...
        @_setting
        def bind(self) -> str | Sequence[str]: ...
        @_setting
        def backlog(self) -> int: ...
        @_setting
        def workers(self) -> int: ...
        @_setting
        def worker_class(self) -> str | type[Any]: ...
        @_setting
        def threads(self) -> int: ...
        @_setting
        def worker_connections(self) -> int: ...
        @_setting
        def max_requests(self) -> int: ...
        @_setting
        def max_requests_jitter(self) -> int: ...
        @_setting
        def timeout(self) -> int: ...
        @_setting
        def graceful_timeout(self) -> int: ...
        @_setting
        def keepalive(self) -> int: ...
        @_setting
        def limit_request_line(self) -> int: ...
        @_setting
        def limit_request_fields(self) -> int: ...
        @_setting
        def limit_request_field_size(self) -> int: ...
        @_setting
        def reload(self) -> bool: ...
        @_setting
        def reload_engine(self) -> str: ...
        @_setting
        def reload_extra_files(self) -> str | Sequence[str]: ...
        @_setting
        def spew(self) -> bool: ...
        @_setting
        def check_config(self) -> bool: ...
        @_setting
        def print_config(self) -> bool: ...
        @_setting
        def preload_app(self) -> bool: ...
        @_setting
        def sendfile(self) -> bool | None: ...
        @_setting
        def reuse_port(self) -> bool: ...
        @_setting
        def chdir(self) -> str: ...
        @_setting
        def daemon(self) -> bool: ...
        @_setting
        def raw_env(self) -> str | Sequence[str]: ...
        @_setting
        def pidfile(self) -> str | None: ...
        @_setting
        def worker_tmp_dir(self) -> str | None: ...
        @_setting
        def user(self) -> int | str | None: ...
        @_setting
        def group(self) -> int | str | None: ...
        @_setting
        def umask(self) -> int: ...
        @_setting
        def initgroups(self) -> bool: ...
        @_setting
        def tmp_upload_dir(self) -> str | None: ...
        @_setting
        def secure_scheme_headers(self) -> dict[str, str]: ...
        @_setting
        def forwarded_allow_ips(self) -> str: ...
        @_setting
        def accesslog(self) -> str | None: ...
        @_setting
        def disable_redirect_access_to_syslog(self) -> bool: ...
        @_setting
        def access_log_format(self) -> str: ...
        @_setting
        def errorlog(self) -> str | None: ...
        @_setting
        def loglevel(self) -> str: ...
        @_setting
        def capture_output(self) -> bool: ...
        @_setting
        def logger_class(self) -> str | type[Any]: ...
        @_setting
        def logconfig(self) -> str | None: ...
        @_setting
        def logconfig_dict(self) -> dict[str, Any]: ...
        @_setting
        def logconfig_json(self) -> str | None: ...
        @_setting
        def syslog_addr(self) -> str: ...
        @_setting
        def syslog(self) -> bool: ...
        @_setting
        def syslog_prefix(self) -> str | None: ...
        @_setting
        def syslog_facility(self) -> str: ...
        @_setting
        def enable_stdio_inheritance(self) -> bool: ...
        @_setting
        def statsd_host(self) -> str | None: ...
        @_setting
        def dogstatsd_tags(self) -> str: ...
        @_setting
        def statsd_prefix(self) -> str: ...
        @_setting
        def enable_backlog_metric(self) -> bool: ...
        @_setting
        def proc_name(self) -> str | None: ...
        @_setting
        def default_proc_name(self) -> str: ...
        @_setting
        def pythonpath(self) -> str | None: ...
        @_setting
        def paste(self) -> str | None: ...
        @_setting
        def proxy_protocol(self) -> bool | str: ...
        @_setting
        def proxy_allow_ips(self) -> str: ...
        @_setting
        def protocol(self) -> str: ...
        @_setting
        def uwsgi_allow_ips(self) -> str: ...
        @_setting
        def keyfile(self) -> str | None: ...
        @_setting
        def certfile(self) -> str | None: ...
        @_setting
        def ssl_version(self) -> int: ...
        @_setting
        def cert_reqs(self) -> int: ...
        @_setting
        def ca_certs(self) -> str | None: ...
        @_setting
        def suppress_ragged_eofs(self) -> bool: ...
        @_setting
        def do_handshake_on_connect(self) -> bool: ...
        @_setting
        def ciphers(self) -> str | None: ...
        @_setting
        def http_protocols(self) -> str: ...
        @_setting
        def http2_cleartext(self) -> bool | str: ...
        @_setting
        def http2_max_concurrent_streams(self) -> int: ...
        @_setting
        def http2_initial_window_size(self) -> int: ...
        @_setting
        def http2_max_frame_size(self) -> int: ...
        @_setting
        def http2_max_header_list_size(self) -> int: ...
        @_setting
        def raw_paste_global_conf(self) -> str | Sequence[str]: ...
        @_setting
        def permit_obsolete_folding(self) -> bool: ...
        @_setting
        def strip_header_spaces(self) -> bool: ...
        @_setting
        def permit_unconventional_http_method(self) -> bool: ...
        @_setting
        def permit_unconventional_http_version(self) -> bool: ...
        @_setting
        def casefold_http_method(self) -> bool: ...
        @_setting
        def forwarder_headers(self) -> str: ...
        @_setting
        def header_map(self) -> str: ...
        @_setting
        def asgi_loop(self) -> str: ...
        @_setting
        def asgi_lifespan(self) -> str: ...
        @_setting
        def asgi_disconnect_grace_period(self) -> int: ...
        @_setting
        def websocket_max_message_size(self) -> int: ...
        @_setting
        def http_parser(self) -> str: ...
        @_setting
        def root_path(self) -> str: ...
        @_setting
        def dirty_apps(self) -> str | Sequence[str]: ...
        @_setting
        def dirty_workers(self) -> int: ...
        @_setting
        def dirty_timeout(self) -> int: ...
        @_setting
        def dirty_threads(self) -> int: ...
        @_setting
        def dirty_graceful_timeout(self) -> int: ...
        @_setting
        def control_socket(self) -> str: ...
        @_setting
        def control_socket_mode(self) -> int: ...
        @_setting
        def control_socket_disable(self) -> bool: ...
        @_setting
        def multiproc_dir(self) -> str | None: ...
        @_setting
        def metrics_keep(self) -> bool: ...
        @_setting
        def metrics_bind(self) -> str | None: ...
        @_setting
        def metrics_path(self) -> str: ...
        @_setting
        def metrics_page(self) -> bool: ...
        @_setting
        def metrics_certfile(self) -> str | None: ...
        @_setting
        def metrics_keyfile(self) -> str | None: ...
        @_setting
        def metrics_ca_certs(self) -> str | None: ...
        @_setting
        def metrics_bearer_token_file(self) -> str | None: ...
        @_setting
        def metrics_auth_file(self) -> str | None: ...
        @_setting
        def metrics_auth_probes(self) -> bool: ...
        @_setting
        def metrics_collectors(self) -> Sequence[str]: ...
        @_setting
        def metrics_max_series(self) -> int | Mapping[str, int] | None: ...
        @_setting
        def metrics_max_bytes(self) -> int | None: ...
        @_setting
        def metrics_requests(self) -> bool: ...
        @_setting
        def metrics_routes(self) -> bool: ...
        @_setting
        def metrics_buckets(self) -> Sequence[float]: ...
        @_setting
        def metrics_exemplars(self) -> bool: ...
        @_setting
        def metrics_standard(self) -> bool: ...
        @_setting
        def metrics_redis(self) -> str | None: ...
        @_setting
        def metrics_redis_name(self) -> str: ...
        @_setting
        def metrics_redis_interval(self) -> float: ...
        @_setting
        def metrics_host(self) -> str | None: ...
        @_setting
        def metrics_fleet_path(self) -> str: ...
        @_setting
        def metrics_push(self) -> str | None: ...

else:
    @dataclass(frozen=True, init=False, repr=False, eq=False)
    class Settings(NearlySettings):
        """Every setting and option."""

        config: str | Computed[str]
        """``The Gunicorn config file``.

        A string of the form ``PATH``, ``file:PATH``, or ``python:MODULE_NAME``.

        Only has an effect when specified on the command line or as part of an
        application specific configuration.

        By default, a file named ``gunicorn.conf.py`` will be read from the same
        directory where gunicorn is being run.

        .. versionchanged:: 19.4
           Loading the config from a Python module requires the ``python:``
           prefix.

        Default: ``'./gunicorn.conf.py'``. Command line: ``-c``, ``--config``.
        """

        wsgi_app: str | None | Computed[str | None]
        """A WSGI application path in pattern ``$(MODULE_NAME):$(VARIABLE_NAME)``.

        .. versionadded:: 20.1.0

        Default: ``None``.
        """

        bind: str | Sequence[str] | Computed[str | Sequence[str]]
        """The socket to bind.

        A string of the form: ``HOST``, ``HOST:PORT``, ``unix:PATH``,
        ``fd://FD``. An IP is a valid ``HOST``.

        .. versionchanged:: 20.0
           Support for ``fd://FD`` got added.

        Multiple addresses can be bound. ex.::

            $ gunicorn -b 127.0.0.1:8000 -b [::1]:8000 test:app

        will bind the `test:app` application on localhost both on ipv6
        and ipv4 interfaces.

        If the ``PORT`` environment variable is defined, the default
        is ``['0.0.0.0:$PORT']``. If it is not defined, the default
        is ``['127.0.0.1:8000']``.

        Default: ``['127.0.0.1:8000']``. Command line: ``-b``, ``--bind``.
        """

        backlog: int | Computed[int]
        """The maximum number of pending connections.

        This refers to the number of clients that can be waiting to be served.
        Exceeding this number results in the client getting an error when
        attempting to connect. It should only affect servers under significant
        load.

        Must be a positive integer. Generally set in the 64-2048 range.

        Default: ``2048``. Command line: ``--backlog``.
        """

        workers: int | Computed[int]
        """The number of worker processes for handling requests.

        A positive integer generally in the ``2-4 x $(NUM_CORES)`` range.
        You'll want to vary this a bit to find the best for your particular
        application's work load.

        By default, the value of the ``WEB_CONCURRENCY`` environment variable,
        which is set by some Platform-as-a-Service providers such as Heroku. If
        it is not defined, the default is ``1``.

        Default: ``1``. Command line: ``-w``, ``--workers``.
        """

        worker_class: str | type[Any] | Computed[str | type[Any]]
        """The type of workers to use.

        The default class (``sync``) should handle most "normal" types of
        workloads. You'll want to read ``worker-types`` for information on when
        you might want to choose one of the other worker classes. Required
        libraries may be installed using setuptools' ``extras_require`` feature.

        A string referring to one of the following bundled classes:

        * ``sync``
        * ``gevent``   - Requires gevent >= 24.10.1 (or install it via
          ``pip install gunicorn[gevent]``)
        * ``tornado``  - Requires tornado >= 6.5.0 (or install it via
          ``pip install gunicorn[tornado]``)
        * ``gthread``  - Python 2 requires the futures package to be installed
          (or install it via ``pip install gunicorn[gthread]``)

        Optionally, you can provide your own worker by giving Gunicorn a
        Python path to a subclass of ``gunicorn.workers.base.Worker``.
        This alternative syntax will load the gevent class:
        ``gunicorn.workers.ggevent.GeventWorker``.

        Default: ``'sync'``. Command line: ``-k``, ``--worker-class``.
        """

        threads: int | Computed[int]
        """The number of worker threads for handling requests.

        Run each worker with the specified number of threads.

        A positive integer generally in the ``2-4 x $(NUM_CORES)`` range.
        You'll want to vary this a bit to find the best for your particular
        application's work load.

        If it is not defined, the default is ``1``.

        This setting only affects the Gthread worker type.

        .. note::
           If you try to use the ``sync`` worker type and set the ``threads``
           setting to more than 1, the ``gthread`` worker type will be used
           instead.

        Default: ``1``. Command line: ``--threads``.
        """

        worker_connections: int | Computed[int]
        """The maximum number of simultaneous clients.

        This setting only affects the ``gthread`` and ``gevent`` worker types.

        Default: ``1000``. Command line: ``--worker-connections``.
        """

        max_requests: int | Computed[int]
        """The maximum number of requests a worker will process before restarting.

        Any value greater than zero will limit the number of requests a worker
        will process before automatically restarting. This is a simple method
        to help limit the damage of memory leaks.

        If this is set to zero (the default) then the automatic worker
        restarts are disabled.

        Default: ``0``. Command line: ``--max-requests``.
        """

        max_requests_jitter: int | Computed[int]
        """The maximum jitter to add to the *max_requests* setting.

        The jitter causes the restart per worker to be randomized by
        ``randint(0, max_requests_jitter)``. This is intended to stagger worker
        restarts to avoid all workers restarting at the same time.

        .. versionadded:: 19.2

        Default: ``0``. Command line: ``--max-requests-jitter``.
        """

        timeout: int | Computed[int]
        """Workers silent for more than this many seconds are killed and restarted.
        The master checks each worker's heartbeat file; a worker that does not
        update it within this timeout is considered silent. Idle workers keep
        updating their heartbeat while waiting for requests.

        Value is a positive number or 0. Setting it to 0 has the effect of
        infinite timeouts by disabling timeouts for all workers entirely.

        Generally, the default of thirty seconds should suffice. Only set this
        noticeably higher if you're sure of the repercussions for sync workers.
        For the non sync workers it just means that the worker process is still
        communicating and is not tied to the length of time required to handle a
        single request.

        On HTTP/2 connections it also bounds a single stream: a request body
        that makes no progress for this long, or a response the peer stops
        reading for this long, is cancelled with ``RST_STREAM``. 0 disables
        that too.

        .. versionchanged:: 26.3.0
           Also bounds a stalled HTTP/2 stream.

        Default: ``30``. Command line: ``-t``, ``--timeout``.
        """

        graceful_timeout: int | Computed[int]
        """Timeout for graceful workers restart in seconds.

        After receiving a restart signal, workers have this much time to finish
        serving requests. Workers still alive after the timeout (starting from
        the receipt of the restart signal) are force killed.

        Default: ``30``. Command line: ``--graceful-timeout``.
        """

        keepalive: int | Computed[int]
        """The number of seconds to wait for requests on a Keep-Alive connection.

        Generally set in the 1-5 seconds range for servers with direct connection
        to the client (e.g. when you don't have separate load balancer). When
        Gunicorn is deployed behind a load balancer, it often makes sense to
        set this to a higher value.

        .. note::
           ``sync`` worker does not support persistent connections and will
           ignore this option.

        On the ``gthread`` and ``gevent`` workers an HTTP/2 connection with no
        stream open is closed with ``GOAWAY`` after this many seconds.

        .. versionchanged:: 26.3.0
           Also applies to idle HTTP/2 connections.

        Default: ``2``. Command line: ``--keep-alive``.
        """

        limit_request_line: int | Computed[int]
        """The maximum size of HTTP request line in bytes.

        This parameter is used to limit the allowed size of a client's
        HTTP request-line. Since the request-line consists of the HTTP
        method, URI, and protocol version, this directive places a
        restriction on the length of a request-URI allowed for a request
        on the server. A server needs this value to be large enough to
        hold any of its resource names, including any information that
        might be passed in the query part of a GET request. Value is a number
        from 0 (unlimited) to 8190.

        This parameter can be used to prevent any DDOS attack.

        Default: ``4094``. Command line: ``--limit-request-line``.
        """

        limit_request_fields: int | Computed[int]
        """Limit the number of HTTP headers fields in a request.

        This parameter is used to limit the number of headers in a request to
        prevent DDOS attack. Used with the *limit_request_field_size* it allows
        more safety. By default this value is 100 and can't be larger than
        32768.

        Default: ``100``. Command line: ``--limit-request-fields``.
        """

        limit_request_field_size: int | Computed[int]
        """Limit the allowed size of an HTTP request header field.

        Value is a positive number or 0. Setting it to 0 will allow unlimited
        header field sizes.

        .. warning::
           Setting this parameter to a very high or unlimited value can open
           up for DDOS attacks.

        Default: ``8190``. Command line: ``--limit-request-field_size``.
        """

        reload: bool | Computed[bool]
        """Restart workers when code changes.

        This setting is intended for development. It will cause workers to be
        restarted whenever application code changes.

        The reloader is incompatible with application preloading. When using a
        paste configuration be sure that the server block does not import any
        application code or the reload will not work as designed.

        The default behavior is to attempt inotify with a fallback to file
        system polling. Generally, inotify should be preferred if available
        because it consumes less system resources.

        .. note::
           In order to use the inotify reloader, you must have the ``inotify``
           package installed.
        .. warning::
           Enabling this will change what happens on failure to load the
           the application: While the reloader is active, any and all clients
           that can make requests can see the full exception and traceback!

        Default: ``False``. Command line: ``--reload``.
        """

        reload_engine: str | Computed[str]
        """The implementation that should be used to power ``reload``.

        Valid engines are:

        * ``'auto'``
        * ``'poll'``
        * ``'inotify'`` (requires inotify)

        .. versionadded:: 19.7

        Default: ``'auto'``. Command line: ``--reload-engine``.
        """

        reload_extra_files: str | Sequence[str] | Computed[str | Sequence[str]]
        """Extends ``reload`` option to also watch and reload on additional files
        (e.g., templates, configurations, specifications, etc.).

        Entries containing ``*``, ``?`` or ``[`` are treated as glob patterns and
        are re-expanded on every reload check, so a file created after startup
        starts being watched without restarting gunicorn. Note that it is the
        first edit to that file which triggers a reload, not its creation. Use
        ``**`` to recurse, and keep patterns narrow: a recursive pattern over a
        large tree is walked once per check.

        Two things behave the way glob does, not the way a path does. ``*`` does
        not match dotfiles, so list ``.env`` literally rather than expecting
        ``*`` to find it. And a literal path that happens to contain ``*``, ``?``
        or ``[`` is read as a pattern, so it warns and matches nothing instead of
        failing outright the way a missing plain path does.

        Patterns are relative to the directory gunicorn is started from, not to
        ``chdir``, which is applied later.

        .. versionadded:: 19.8

        .. versionchanged:: 26.1.0
           Glob patterns are supported.

        Default: ``[]``. Command line: ``--reload-extra-file``.
        """

        spew: bool | Computed[bool]
        """Install a trace function that spews every line executed by the server.

        This is the nuclear option.

        Default: ``False``. Command line: ``--spew``.
        """

        check_config: bool | Computed[bool]
        """Check the configuration and exit. The exit status is 0 if the
        configuration is correct, and 1 if the configuration is incorrect.

        Default: ``False``. Command line: ``--check-config``.
        """

        print_config: bool | Computed[bool]
        """Print the configuration settings as fully resolved. Implies ``check-config``.

        Default: ``False``. Command line: ``--print-config``.
        """

        preload_app: bool | Computed[bool]
        """Load application code before the worker processes are forked.

        By preloading an application you can save some RAM resources as well as
        speed up server boot times. Although, if you defer application loading
        to each worker process, you can reload your application code easily by
        restarting workers.

        Default: ``False``. Command line: ``--preload``.
        """

        sendfile: bool | None | Computed[bool | None]
        """Disables the use of ``sendfile()``.

        If not set, the value of the ``SENDFILE`` environment variable is used
        to enable or disable its usage.

        .. versionadded:: 19.2
        .. versionchanged:: 19.4
           Swapped ``--sendfile`` with ``--no-sendfile`` to actually allow
           disabling.
        .. versionchanged:: 19.6
           added support for the ``SENDFILE`` environment variable

        Default: ``None``. Command line: ``--no-sendfile``.
        """

        reuse_port: bool | Computed[bool]
        """Set the ``SO_REUSEPORT`` flag on the listening socket.

        .. versionadded:: 19.8

        Default: ``False``. Command line: ``--reuse-port``.
        """

        chdir: str | Computed[str]
        """Change directory to specified directory before loading apps.

        Default: ``'.'``. Command line: ``--chdir``.
        """

        daemon: bool | Computed[bool]
        """Daemonize the Gunicorn process.

        Detaches the server from the controlling terminal and enters the
        background.

        Default: ``False``. Command line: ``-D``, ``--daemon``.
        """

        raw_env: str | Sequence[str] | Computed[str | Sequence[str]]
        """Set environment variables in the execution environment.

        Should be a list of strings in the ``key=value`` format.

        For example on the command line:

        .. code-block:: console

            $ gunicorn -b 127.0.0.1:8000 --env FOO=1 test:app

        Or in the configuration file:

        .. code-block:: python

            raw_env = ["FOO=1"]

        Default: ``[]``. Command line: ``-e``, ``--env``.
        """

        pidfile: str | None | Computed[str | None]
        """A filename to use for the PID file.

        If not set, no PID file will be written.

        Default: ``None``. Command line: ``-p``, ``--pid``.
        """

        worker_tmp_dir: str | None | Computed[str | None]
        """A directory to use for the worker heartbeat temporary file.

        If not set, the default temporary directory will be used.

        .. note::
           The current heartbeat system involves calling ``os.fchmod`` on
           temporary file handlers and may block a worker for arbitrary time
           if the directory is on a disk-backed filesystem.

           See ``blocking-os-fchmod`` for more detailed information
           and a solution for avoiding this problem.

        Default: ``None``. Command line: ``--worker-tmp-dir``.
        """

        user: int | str | None | Computed[int | str | None]
        """Switch worker processes to run as this user.

        A valid user id (as an integer) or the name of a user that can be
        retrieved with a call to ``pwd.getpwnam(value)`` or ``None`` to not
        change the worker process user.

        Default: ``os.geteuid()``. Command line: ``-u``, ``--user``.
        """

        group: int | str | None | Computed[int | str | None]
        """Switch worker process to run as this group.

        A valid group id (as an integer) or the name of a user that can be
        retrieved with a call to ``grp.getgrnam(value)`` or ``None`` to not
        change the worker processes group.

        Default: ``os.getegid()``. Command line: ``-g``, ``--group``.
        """

        umask: int | Computed[int]
        """A bit mask for the file mode on files written by Gunicorn.

        Note that this affects unix socket permissions.

        A valid value for the ``os.umask(mode)`` call or a string compatible
        with ``int(value, 0)`` (``0`` means Python guesses the base, so values
        like ``0``, ``0xFF``, ``0022`` are valid for decimal, hex, and octal
        representations)

        Default: ``0``. Command line: ``-m``, ``--umask``.
        """

        initgroups: bool | Computed[bool]
        """If true, set the worker process's group access list with all of the
        groups of which the specified username is a member, plus the specified
        group id.

        .. versionadded:: 19.7

        Default: ``False``. Command line: ``--initgroups``.
        """

        tmp_upload_dir: str | None | Computed[str | None]
        """Directory to store temporary request data as they are read.

        This may disappear in the near future.

        This path should be writable by the process permissions set for Gunicorn
        workers. If not specified, Gunicorn will choose a system generated
        temporary directory.

        Default: ``None``.
        """

        secure_scheme_headers: dict[str, str] | Computed[dict[str, str]]
        """A dictionary containing headers and values that the front-end proxy
        uses to indicate HTTPS requests. If the source IP is permitted by
        ``forwarded-allow-ips`` (below), *and* at least one request header matches
        a key-value pair listed in this dictionary, then Gunicorn will set
        ``wsgi.url_scheme`` to ``https``, so your application can tell that the
        request is secure.

        If the other headers listed in this dictionary are not present in the request, they will be ignored,
        but if the other headers are present and do not match the provided values, then
        the request will fail to parse. See the note below for more detailed examples of this behaviour.

        The dictionary should map upper-case header names to exact string
        values. The value comparisons are case-sensitive, unlike the header
        names, so make sure they're exactly what your front-end proxy sends
        when handling HTTPS requests.

        It is important that your front-end proxy configuration ensures that
        the headers defined here can not be passed directly from the client.

        Default: ``{'X-FORWARDED-PROTOCOL': 'ssl', 'X-FORWARDED-PROTO': 'https', 'X-FORWARDED-SSL': 'on'}``.
        """

        forwarded_allow_ips: str | Computed[str]
        """Front-end's IP addresses or networks from which allowed to handle
        set secure headers. (comma separated).

        Supports both individual IP addresses (e.g., ``192.168.1.1``) and
        CIDR networks (e.g., ``192.168.0.0/16``).

        Set to ``*`` to disable checking of front-end IPs. This is useful for setups
        where you don't know in advance the IP address of front-end, but
        instead have ensured via other means that only your
        authorized front-ends can access Gunicorn.

        By default, the value of the ``FORWARDED_ALLOW_IPS`` environment
        variable. If it is not defined, the default is ``"127.0.0.1,::1"``.

        .. note::

            This option does not affect UNIX socket connections. Connections not associated with
            an IP address are treated as allowed, unconditionally.

        .. note::

            The interplay between the request headers, the value of ``forwarded_allow_ips``, and the value of
            ``secure_scheme_headers`` is complex. Various scenarios are documented below to further elaborate.
            In each case, we have a request from the remote address 134.213.44.18, and the default value of
            ``secure_scheme_headers``:

            ```python
            secure_scheme_headers = {
                'X-FORWARDED-PROTOCOL': 'ssl',
                'X-FORWARDED-PROTO': 'https',
                'X-FORWARDED-SSL': 'on'
            }
            ```

            +---------------------+----------------------------+-----------------------------+-------------------------+
            | forwarded-allow-ips | Secure Request Headers     | Result                      | Explanation             |
            +=====================+============================+=============================+=========================+
            | `"127.0.0.1"`       | `X-Forwarded-Proto: https` | `wsgi.url_scheme = "http"`  | IP address was not      |
            |                     |                            |                             | allowed                 |
            +---------------------+----------------------------+-----------------------------+-------------------------+
            |                     |                            |                             | IP address allowed, but |
            | `"*"`               | `<none>`                   | `wsgi.url_scheme = "http"`  | no secure headers       |
            |                     |                            |                             | provided                |
            +---------------------+----------------------------+-----------------------------+-------------------------+
            | `"*"`               | `X-Forwarded-Proto: https` | `wsgi.url_scheme = "https"` | IP address allowed, one |
            |                     |                            |                             | request header matched  |
            +---------------------+----------------------------+-----------------------------+-------------------------+
            |                     |                            |                             | IP address allowed, but |
            | `"134.213.44.18"`   | `X-Forwarded-Ssl: on`      | `InvalidSchemeHeaders()`    | the two secure headers  |
            |                     | `X-Forwarded-Proto: http`  | raised                      | disagreed on if HTTPS   |
            |                     |                            |                             | was used                |
            +---------------------+----------------------------+-----------------------------+-------------------------+

        Default: ``'127.0.0.1,::1'``. Command line: ``--forwarded-allow-ips``.
        """

        accesslog: str | None | Computed[str | None]
        """The Access log file to write to.

        ``'-'`` means log to stdout.

        Default: ``None``. Command line: ``--access-logfile``.
        """

        disable_redirect_access_to_syslog: bool | Computed[bool]
        """Disable redirect access logs to syslog.

        .. versionadded:: 19.8

        Default: ``False``. Command line: ``--disable-redirect-access-to-syslog``.
        """

        access_log_format: str | Computed[str]
        """The access log format.

        | Identifier  | Description                                                                 |
        |-------------|-----------------------------------------------------------------------------|
        | h           | remote client IP address (not overridden by proxy headers like X-Real-IP)   |
        | l           | `'-'` for compatibility with Common Log Format (CLF)                        |
        | u           | user name (if HTTP Basic auth used)                                         |
        | t           | date of the request at logging time in CLF format                           |
        | r           | status line (e.g. `GET / HTTP/1.1`)                                         |
        | m           | request method                                                              |
        | U           | URL path without query string                                               |
        | q           | query string without a leading '?'                                          |
        | H           | protocol                                                                    |
        | s           | status                                                                      |
        | B           | response length                                                             |
        | b           | response length or `'-'` (CLF format)                                       |
        | f           | referrer (note: header is `referer`)                                        |
        | a           | user agent                                                                  |
        | T           | request duration in seconds                                                 |
        | M           | request duration in milliseconds                                            |
        | D           | request duration in microseconds                                            |
        | L           | request duration in decimal seconds                                         |
        | p           | process ID                                                                  |
        | {header}i   | request header                                                              |
        | {header}o   | response header                                                             |
        | {variable}e | environment variable                                                        |

        Use lowercase for header and environment variable names, and put
        ``{...}x`` names inside ``%(...)s``. For example::

            %({x-forwarded-for}i)s

        Default: ``'%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"'``. Command line: ``--access-logformat``.
        """

        errorlog: str | None | Computed[str | None]
        """The Error log file to write to.

        Using ``'-'`` for FILE makes gunicorn log to stderr.

        .. versionchanged:: 19.2
           Log to stderr by default.

        Default: ``'-'``. Command line: ``--error-logfile``, ``--log-file``.
        """

        loglevel: str | Computed[str]
        """The granularity of Error log outputs.

        Valid level names are:

        * ``'debug'``
        * ``'info'``
        * ``'warning'``
        * ``'error'``
        * ``'critical'``

        Default: ``'info'``. Command line: ``--log-level``.
        """

        capture_output: bool | Computed[bool]
        """Redirect stdout/stderr to specified file in ``errorlog``.

        .. versionadded:: 19.6

        Default: ``False``. Command line: ``--capture-output``.
        """

        logger_class: str | type[Any] | Computed[str | type[Any]]
        """The logger you want to use to log events in Gunicorn.

        The default class (``gunicorn.glogging.Logger``) handles most
        normal usages in logging. It provides error and access logging.

        You can provide your own logger by giving Gunicorn a Python path to a
        class that quacks like ``gunicorn.glogging.Logger``.

        Default: ``'gunicorn.glogging.Logger'``. Command line: ``--logger-class``.
        """

        logconfig: str | None | Computed[str | None]
        """The log config file to use.
        Gunicorn uses the standard Python logging module's Configuration
        file format.

        Default: ``None``. Command line: ``--log-config``.
        """

        logconfig_dict: dict[str, Any] | Computed[dict[str, Any]]
        """The log config dictionary to use, using the standard Python
        logging module's dictionary configuration format. This option
        takes precedence over the ``logconfig`` and ``logconfig-json`` options,
        which uses the older file configuration format and JSON
        respectively.

        Format: https://docs.python.org/3/library/logging.config.html#logging.config.dictConfig

        For more context you can look at the default configuration dictionary for logging,
        which can be found at ``gunicorn.glogging.CONFIG_DEFAULTS``.

        .. versionadded:: 19.8

        Default: ``{}``.
        """

        logconfig_json: str | None | Computed[str | None]
        """The log config to read config from a JSON file

        Format: https://docs.python.org/3/library/logging.config.html#logging.config.jsonConfig

        .. versionadded:: 20.0

        Default: ``None``. Command line: ``--log-config-json``.
        """

        syslog_addr: str | Computed[str]
        """Address to send syslog messages.

        Address is a string of the form:

        * ``unix://PATH#TYPE`` : for unix domain socket. ``TYPE`` can be ``stream``
          for the stream driver or ``dgram`` for the dgram driver.
          ``stream`` is the default.
        * ``udp://HOST:PORT`` : for UDP sockets
        * ``tcp://HOST:PORT`` : for TCP sockets

        Default: Platform-specific: * macOS: ``'unix:///var/run/syslog'`` * FreeBSD/DragonFly: ``'unix:///var/run/log'`` * OpenBSD: ``'unix:///dev/log'`` * Linux/other: ``'udp://localhost:514'``. Command line: ``--log-syslog-to``.
        """

        syslog: bool | Computed[bool]
        """Send *Gunicorn* logs to syslog.

        .. versionchanged:: 19.8
           You can now disable sending access logs by using the
           ``disable-redirect-access-to-syslog`` setting.

        Default: ``False``. Command line: ``--log-syslog``.
        """

        syslog_prefix: str | None | Computed[str | None]
        """Makes Gunicorn use the parameter as program-name in the syslog entries.

        All entries will be prefixed by ``gunicorn.<prefix>``. By default the
        program name is the name of the process.

        Default: ``None``. Command line: ``--log-syslog-prefix``.
        """

        syslog_facility: str | Computed[str]
        """Syslog facility name

        Default: ``'user'``. Command line: ``--log-syslog-facility``.
        """

        enable_stdio_inheritance: bool | Computed[bool]
        """Enable stdio inheritance.

        Enable inheritance for stdio file descriptors in daemon mode.

        Note: To disable the Python stdout buffering, you can to set the user
        environment variable ``PYTHONUNBUFFERED`` .

        Default: ``False``. Command line: ``-R``, ``--enable-stdio-inheritance``.
        """

        statsd_host: str | None | Computed[str | None]
        """The address of the StatsD server to log to.

        Address is a string of the form:

        * ``unix://PATH`` : for a unix domain socket.
        * ``HOST:PORT`` : for a network address

        .. versionadded:: 19.1

        Default: ``None``. Command line: ``--statsd-host``.
        """

        dogstatsd_tags: str | Computed[str]
        """A comma-delimited list of datadog statsd (dogstatsd) tags to append to
        statsd metrics. e.g. ``'tag1:value1,tag2:value2'``

        .. versionadded:: 20

        Default: ``''``. Command line: ``--dogstatsd-tags``.
        """

        statsd_prefix: str | Computed[str]
        """Prefix to use when emitting statsd metrics (a trailing ``.`` is added,
        if not provided).

        .. versionadded:: 19.2

        Default: ``''``. Command line: ``--statsd-prefix``.
        """

        enable_backlog_metric: bool | Computed[bool]
        """Enable socket backlog metric (only supported on Linux).

        When enabled, gunicorn will emit a ``gunicorn.backlog`` histogram metric
        showing the number of connections waiting in the socket backlog.

        Default: ``False``. Command line: ``--enable-backlog-metric``.
        """

        proc_name: str | None | Computed[str | None]
        """A base to use with setproctitle for process naming.

        This affects things like ``ps`` and ``top``. If you're going to be
        running more than one instance of Gunicorn you'll probably want to set a
        name to tell them apart. This requires that you install the setproctitle
        module.

        If not set, the *default_proc_name* setting will be used.

        Default: ``None``. Command line: ``-n``, ``--name``.
        """

        default_proc_name: str | Computed[str]
        """Internal setting that is adjusted for each type of application.

        Default: ``'gunicorn'``.
        """

        pythonpath: str | None | Computed[str | None]
        """A comma-separated list of directories to add to the Python path.

        e.g.
        ``'/home/djangoprojects/myproject,/home/python/mylibrary'``.

        Default: ``None``. Command line: ``--pythonpath``.
        """

        paste: str | None | Computed[str | None]
        """Load a PasteDeploy config file. The argument may contain a ``#``
        symbol followed by the name of an app section from the config file,
        e.g. ``production.ini#admin``.

        At this time, using alternate server blocks is not supported. Use the
        command line arguments to control server configuration instead.

        Default: ``None``. Command line: ``--paste``, ``--paster``.
        """

        proxy_protocol: bool | str | Computed[bool | str]
        """Enable PROXY protocol support.

        Allow using HTTP and PROXY protocol together. It may be useful for work
        with stunnel as HTTPS frontend and Gunicorn as HTTP server, or with
        HAProxy.

        Accepted values:

        * ``off`` - Disabled (default)
        * ``v1`` - PROXY protocol v1 only (text format)
        * ``v2`` - PROXY protocol v2 only (binary format)
        * ``auto`` - Auto-detect v1 or v2

        Using ``--proxy-protocol`` without a value is equivalent to ``auto``.

        PROXY protocol v1: http://haproxy.1wt.eu/download/1.5/doc/proxy-protocol.txt
        PROXY protocol v2: https://www.haproxy.org/download/1.8/doc/proxy-protocol.txt

        Example for stunnel config::

            [https]
            protocol = proxy
            accept  = 443
            connect = 80
            cert = /etc/ssl/certs/stunnel.pem
            key = /etc/ssl/certs/stunnel.key

        .. versionchanged:: 24.1.0
           Extended to support version selection (v1, v2, auto).

        Default: ``'off'``. Command line: ``--proxy-protocol``.
        """

        proxy_allow_ips: str | Computed[str]
        """Front-end's IP addresses or networks from which allowed accept
        proxy requests (comma separated).

        Supports both individual IP addresses (e.g., ``192.168.1.1``) and
        CIDR networks (e.g., ``192.168.0.0/16``).

        Set to ``*`` to disable checking of front-end IPs. This is useful for setups
        where you don't know in advance the IP address of front-end, but
        instead have ensured via other means that only your
        authorized front-ends can access Gunicorn.

        .. note::

            This option does not affect UNIX socket connections. Connections not associated with
            an IP address are treated as allowed, unconditionally.

        Default: ``'127.0.0.1,::1'``. Command line: ``--proxy-allow-from``.
        """

        protocol: str | Computed[str]
        """The protocol for incoming connections.

        * ``http`` - Standard HTTP/1.x (default)
        * ``uwsgi`` - uWSGI binary protocol (for nginx uwsgi_pass)

        When using the uWSGI protocol, Gunicorn can receive requests from
        nginx using the uwsgi_pass directive::

            upstream gunicorn {
                server 127.0.0.1:8000;
            }
            location / {
                uwsgi_pass gunicorn;
                include uwsgi_params;
            }

        Default: ``'http'``. Command line: ``--protocol``.
        """

        uwsgi_allow_ips: str | Computed[str]
        """IPs allowed to send uWSGI protocol requests (comma separated).

        Set to ``*`` to allow all IPs. This is useful for setups where you
        don't know in advance the IP address of front-end, but instead have
        ensured via other means that only your authorized front-ends can
        access Gunicorn.

        .. note::

            This option does not affect UNIX socket connections. Connections not associated with
            an IP address are treated as allowed, unconditionally.

        Default: ``'127.0.0.1,::1'``. Command line: ``--uwsgi-allow-from``.
        """

        keyfile: str | None | Computed[str | None]
        """SSL key file

        Default: ``None``. Command line: ``--keyfile``.
        """

        certfile: str | None | Computed[str | None]
        """SSL certificate file

        Default: ``None``. Command line: ``--certfile``.
        """

        ssl_version: int | Computed[int]
        """SSL version to use (see stdlib ssl module's).

        .. deprecated:: 21.0
           The option is deprecated and it is currently ignored. Use ``ssl-context`` instead.

        ============= ============
        --ssl-version Description
        ============= ============
        SSLv3         SSLv3 is not-secure and is strongly discouraged.
        SSLv23        Alias for TLS. Deprecated in Python 3.6, use TLS.
        TLS           Negotiate highest possible version between client/server.
                      Can yield SSL. (Python 3.6+)
        TLSv1         TLS 1.0
        TLSv1_1       TLS 1.1 (Python 3.4+)
        TLSv1_2       TLS 1.2 (Python 3.4+)
        TLS_SERVER    Auto-negotiate the highest protocol version like TLS,
                      but only support server-side SSLSocket connections.
                      (Python 3.6+)
        ============= ============

        .. versionchanged:: 19.7
           The default value has been changed from ``ssl.PROTOCOL_TLSv1`` to
           ``ssl.PROTOCOL_SSLv23``.
        .. versionchanged:: 20.0
           This setting now accepts string names based on ``ssl.PROTOCOL_``
           constants.
        .. versionchanged:: 20.0.1
           The default value has been changed from ``ssl.PROTOCOL_SSLv23`` to
           ``ssl.PROTOCOL_TLS`` when Python >= 3.6 .

        Default: ``<_SSLMethod.PROTOCOL_TLS: 2>``. Command line: ``--ssl-version``.
        """

        cert_reqs: int | Computed[int]
        """Whether client certificate is required (see stdlib ssl module's)

        ===========  ===========================
        --cert-reqs      Description
        ===========  ===========================
        `0`          no client verification
        `1`          ssl.CERT_OPTIONAL
        `2`          ssl.CERT_REQUIRED
        ===========  ===========================

        Default: ``<VerifyMode.CERT_NONE: 0>``. Command line: ``--cert-reqs``.
        """

        ca_certs: str | None | Computed[str | None]
        """CA certificates file

        Default: ``None``. Command line: ``--ca-certs``.
        """

        suppress_ragged_eofs: bool | Computed[bool]
        """Suppress ragged EOFs (see stdlib ssl module's)

        Default: ``True``. Command line: ``--suppress-ragged-eofs``.
        """

        do_handshake_on_connect: bool | Computed[bool]
        """Whether to perform SSL handshake on socket connect (see stdlib ssl module's)

        Default: ``False``. Command line: ``--do-handshake-on-connect``.
        """

        ciphers: str | None | Computed[str | None]
        """SSL Cipher suite to use, in the format of an OpenSSL cipher list.

        By default we use the default cipher list from Python's ``ssl`` module,
        which contains ciphers considered strong at the time of each Python
        release.

        As a recommended alternative, the Open Web App Security Project (OWASP)
        offers `a vetted set of strong cipher strings rated A+ to C-
        <https://www.owasp.org/index.php/TLS_Cipher_String_Cheat_Sheet>`_.
        OWASP provides details on user-agent compatibility at each security level.

        See the `OpenSSL Cipher List Format Documentation
        <https://www.openssl.org/docs/manmaster/man1/ciphers.html#CIPHER-LIST-FORMAT>`_
        for details on the format of an OpenSSL cipher list.

        Default: ``None``. Command line: ``--ciphers``.
        """

        http_protocols: str | Computed[str]
        """HTTP protocol versions to support (comma-separated, order = preference).

        Valid protocols:

        * ``h1`` - HTTP/1.1 (default)
        * ``h2`` - HTTP/2 (TLS with ALPN, or cleartext via ``http2_cleartext``)

        Examples::

            # HTTP/1.1 only (default, backward compatible)
            --http-protocols=h1

            # Prefer HTTP/2, fallback to HTTP/1.1
            --http-protocols=h2,h1

            # Offer HTTP/2 only. A client that does not select it over ALPN
            # is still served HTTP/1.1; there is no rejection.
            --http-protocols=h2

        HTTP/2 requires:

        * TLS (--certfile and --keyfile)
        * The h2 library: ``pip install gunicorn[http2]``
        * ALPN-capable TLS client

        .. note::
           HTTP/2 cleartext (h2c) is disabled by default. Deployments behind
           a TLS-terminating proxy can enable prior-knowledge h2c with
           ``http2-prior-knowledge``.

        .. versionadded:: 25.0.0

        Default: ``'h1'``. Command line: ``--http-protocols``.
        """

        http2_cleartext: bool | str | Computed[bool | str]
        """Accept HTTP/2 over cleartext TCP (h2c), and by which mechanism.

        Valid values are:

        * ``off`` (default) - no cleartext HTTP/2
        * ``prior-knowledge`` - serve connections that open with the HTTP/2
          connection preface (``PRI * HTTP/2.0``), RFC 9113 section 3.4
        * ``upgrade`` - honour an HTTP/1.1 ``Upgrade: h2c`` request
        * ``both`` - accept either

        The mechanisms are listed separately on purpose: enabling one does not
        enable the other.

        With ``prior-knowledge`` alone, a trusted peer that does not send the
        preface is refused with 400, since it is expected to speak HTTP/2.
        With ``upgrade`` or ``both`` an HTTP/1 request is how an upgrade
        begins, so it is served normally.

        Only peers in ``forwarded-allow-ips`` are considered. Everyone else
        is served HTTP/1.x exactly as if this were ``off``. Anything else from
        a trusted peer on a prior-knowledge port (an HTTP/1.x request, a
        malformed or stalled preface) is rejected with a 400: such a peer is
        expected to speak HTTP/2, and a silent downgrade would only hide a
        misconfiguration.

        This is meant for deployments where TLS is terminated by a trusted
        proxy that speaks HTTP/2 upstream (Cloud Run, fly.io, a service-mesh
        sidecar). Do not expose a cleartext HTTP/2 port to the internet.

        Requires ``h2`` in ``http-protocols`` and the h2 library
        (``pip install gunicorn[http2]``). Ignored when TLS is configured;
        there HTTP/2 is negotiated by ALPN.

        .. versionadded:: 26.2.0

        Default: ``'off'``. Command line: ``--http2-cleartext``.
        """

        http2_max_concurrent_streams: int | Computed[int]
        """Maximum number of concurrent HTTP/2 streams per connection.

        This limits how many requests can be processed simultaneously on a
        single HTTP/2 connection. Higher values allow more parallelism but
        use more memory.

        Default is 100, which matches common server configurations.
        The HTTP/2 specification allows up to 2^31-1.

        .. versionadded:: 25.0.0

        Default: ``100``. Command line: ``--http2-max-concurrent-streams``.
        """

        http2_initial_window_size: int | Computed[int]
        """Initial HTTP/2 flow control window size in bytes.

        This controls how much data can be in-flight before the receiver
        sends WINDOW_UPDATE frames. Larger values can improve throughput
        for large transfers but use more memory.

        Default is 65535 (64KB - 1), the HTTP/2 specification default.
        Maximum is 2^31-1 (2147483647).

        .. versionadded:: 25.0.0

        Default: ``65535``. Command line: ``--http2-initial-window-size``.
        """

        http2_max_frame_size: int | Computed[int]
        """Maximum HTTP/2 frame payload size in bytes.

        This is the largest frame payload the server will accept.
        Larger frames reduce framing overhead but may increase latency
        for small messages.

        Default is 16384 (16KB), the HTTP/2 specification minimum.
        Range is 16384 to 16777215 (16MB - 1).

        .. versionadded:: 25.0.0

        Default: ``16384``. Command line: ``--http2-max-frame-size``.
        """

        http2_max_header_list_size: int | Computed[int]
        """Maximum size of HTTP/2 header list in bytes (HPACK protection).

        This limits the total size of headers after HPACK decompression.
        Protects against compression bombs and excessive memory use.

        Default is 65536 (64KB). Set to 0 for unlimited (not recommended).

        .. versionadded:: 25.0.0

        Default: ``65536``. Command line: ``--http2-max-header-list-size``.
        """

        raw_paste_global_conf: str | Sequence[str] | Computed[str | Sequence[str]]
        """Set a PasteDeploy global config variable in ``key=value`` form.

        The option can be specified multiple times.

        The variables are passed to the PasteDeploy entrypoint. Example::

            $ gunicorn -b 127.0.0.1:8000 --paste development.ini --paste-global FOO=1 --paste-global BAR=2

        .. versionadded:: 19.7

        Default: ``[]``. Command line: ``--paste-global``.
        """

        permit_obsolete_folding: bool | Computed[bool]
        """Permit requests employing obsolete HTTP line folding mechanism

        The folding mechanism was deprecated by rfc7230 Section 3.2.4 and will not be
         employed in HTTP request headers from standards-compliant HTTP clients.

        This option is provided to diagnose backwards-incompatible changes.
        Use with care and only if necessary. Temporary; the precise effect of this option may
        change in a future version, or it may be removed altogether.

        .. versionadded:: 23.0.0

        Default: ``False``. Command line: ``--permit-obsolete-folding``.
        """

        strip_header_spaces: bool | Computed[bool]
        """Strip spaces present between the header name and the the ``:``.

        This is known to induce vulnerabilities and is not compliant with the HTTP/1.1 standard.
        See https://portswigger.net/research/http-desync-attacks-request-smuggling-reborn.

        Use with care and only if necessary. Deprecated; scheduled for removal in 25.0.0

        .. versionadded:: 20.0.1

        Default: ``False``. Command line: ``--strip-header-spaces``.
        """

        permit_unconventional_http_method: bool | Computed[bool]
        """Permit HTTP methods not matching conventions, such as IANA registration guidelines

        This permits request methods of length less than 3 or more than 20,
        methods with lowercase characters or methods containing the # character.
        HTTP methods are case sensitive by definition, and merely uppercase by convention.

        If unset, Gunicorn will apply nonstandard restrictions and cause 400 response status
        in cases where otherwise 501 status is expected. While this option does modify that
        behaviour, it should not be depended upon to guarantee standards-compliant behaviour.
        Rather, it is provided temporarily, to assist in diagnosing backwards-incompatible
        changes around the incomplete application of those restrictions.

        Use with care and only if necessary. Temporary; scheduled for removal in 24.0.0

        .. versionadded:: 22.0.0

        Default: ``False``. Command line: ``--permit-unconventional-http-method``.
        """

        permit_unconventional_http_version: bool | Computed[bool]
        """Permit HTTP version not matching conventions of 2023

        This disables the refusal of likely malformed request lines.
        It is unusual to specify HTTP 1 versions other than 1.0 and 1.1.

        This option is provided to diagnose backwards-incompatible changes.
        Use with care and only if necessary. Temporary; the precise effect of this option may
        change in a future version, or it may be removed altogether.

        .. versionadded:: 22.0.0

        Default: ``False``. Command line: ``--permit-unconventional-http-version``.
        """

        casefold_http_method: bool | Computed[bool]
        """Transform received HTTP methods to uppercase

        HTTP methods are case sensitive by definition, and merely uppercase by convention.

        This option is provided because previous versions of gunicorn defaulted to this behaviour.

        Use with care and only if necessary. Deprecated; scheduled for removal in 24.0.0

        .. versionadded:: 22.0.0

        Default: ``False``. Command line: ``--casefold-http-method``.
        """

        forwarder_headers: str | Computed[str]
        """A list containing upper-case header field names that the front-end proxy
        (see ``forwarded-allow-ips``) sets, to be used in WSGI environment.

        This option has no effect for headers not present in the request.

        This option can be used to transfer ``SCRIPT_NAME``, ``PATH_INFO``
        and ``REMOTE_USER``.

        It is important that your front-end proxy configuration ensures that
        the headers defined here can not be passed directly from the client.

        Default: ``'SCRIPT_NAME,PATH_INFO'``. Command line: ``--forwarder-headers``.
        """

        header_map: str | Computed[str]
        """Configure how header field names are mapped into environ

        Headers containing underscores are permitted by RFC9110,
        but gunicorn joining headers of different names into
        the same environment variable will dangerously confuse applications as to which is which.

        The safe default ``drop`` is to silently drop headers that cannot be unambiguously mapped.
        The value ``refuse`` will return an error if a request contains *any* such header.
        The value ``dangerous`` matches the previous, not advisable, behaviour of mapping different
        header field names into the same environ name.

        If the source is permitted as explained in ``forwarded-allow-ips``, *and* the header name is
        present in ``forwarder-headers``, the header is mapped into environment regardless of
        the state of this setting.

        Use with care and only if necessary and after considering if your problem could
        instead be solved by specifically renaming or rewriting only the intended headers
        on a proxy in front of Gunicorn.

        .. versionadded:: 22.0.0

        Default: ``'drop'``. Command line: ``--header-map``.
        """

        asgi_loop: str | Computed[str]
        """Event loop implementation for ASGI workers.

        - auto: Use uvloop if available, otherwise asyncio
        - asyncio: Use Python's built-in asyncio event loop
        - uvloop: Use uvloop (must be installed separately)

        This setting only affects the ``asgi`` worker type.

        uvloop typically provides better performance but requires
        installing the uvloop package.

        .. versionadded:: 24.0.0

        Default: ``'auto'``. Command line: ``--asgi-loop``.
        """

        asgi_lifespan: str | Computed[str]
        """Control ASGI lifespan protocol handling.

        - auto: Detect if app supports lifespan, enable if so
        - on: Always run lifespan protocol (fail if unsupported)
        - off: Never run lifespan protocol

        In ``auto`` and ``on`` mode, an app that sends
        ``lifespan.startup.failed`` stops gunicorn. With ``on``, any failure
        to complete startup does.

        The lifespan protocol allows ASGI applications to run code at
        startup and shutdown. This is essential for frameworks like
        FastAPI that need to initialize database connections, caches,
        or other resources.

        This setting only affects the ``asgi`` worker type.

        .. versionadded:: 24.0.0

        Default: ``'auto'``. Command line: ``--asgi-lifespan``.
        """

        asgi_disconnect_grace_period: int | Computed[int]
        """Grace period (seconds) for ASGI apps to handle client disconnects.

        When a client disconnects, the ASGI app receives an http.disconnect
        message and has this many seconds to clean up resources (like database
        connections) before the request task is cancelled.

        Set to 0 to cancel immediately (not recommended for apps with async
        database connections). Apps with long-running database operations may
        need to increase this value.

        This setting only affects the ``asgi`` worker type.

        .. versionadded:: 25.0.0

        Default: ``3``. Command line: ``--asgi-disconnect-grace-period``.
        """

        websocket_max_message_size: int | Computed[int]
        """Largest WebSocket message, in bytes, the ``asgi`` worker accepts.

        ASGI hands the application whole messages, so each message is held in
        memory until its last frame arrives. A frame or a fragmented message
        larger than this closes the connection with code 1009 (message too
        big, RFC 6455 section 7.4.1).

        Set to 0 for no limit.

        .. versionadded:: 26.3.0

        Default: ``16777216``. Command line: ``--websocket-max-message-size``.
        """

        http_parser: str | Computed[str]
        """HTTP parser implementation.

        - auto: Use gunicorn_h1c if it is available, else use the pure Python parser (default)
        - fast: Require gunicorn_h1c (fail if unavailable)
        - python: Force pure Python parser

        The gunicorn_h1c C extension provides significantly faster HTTP parsing
        using picohttpparser with SIMD optimizations.

        Install it with: pip install gunicorn[fast]

        .. versionadded:: 25.0.0

        Default: ``'auto'``. Command line: ``--http-parser``.
        """

        root_path: str | Computed[str]
        """The root path for ASGI applications.

        This is used to set the ``root_path`` in the ASGI scope, which
        allows applications to know their mount point when behind a
        reverse proxy.

        For example, if your application is mounted at ``/api``, set
        this to ``/api``.

        .. versionadded:: 24.0.0

        Default: ``''``. Command line: ``--root-path``.
        """

        dirty_apps: str | Sequence[str] | Computed[str | Sequence[str]]
        """Dirty applications to load in the dirty worker pool.

        A list of application paths in one of these formats:

        - ``$(MODULE_NAME):$(CLASS_NAME)`` - all workers load this app
        - ``$(MODULE_NAME):$(CLASS_NAME):$(N)`` - only N workers load this app

        Each dirty app must be a class that inherits from ``DirtyApp`` base class
        and implements the ``init()``, ``__call__()``, and ``close()`` methods.

        Example::

            dirty_apps = [
                "myapp.ml:MLApp",           # All workers load this
                "myapp.images:ImageApp",    # All workers load this
                "myapp.heavy:HugeModel:2",  # Only 2 workers load this
            ]

        The per-app worker limit is useful for memory-intensive applications
        like large ML models. Instead of all 8 workers loading a 10GB model
        (80GB total), you can limit it to 2 workers (20GB total).

        Alternatively, you can set the ``workers`` class attribute on your
        DirtyApp subclass::

            class HugeModelApp(DirtyApp):
                workers = 2  # Only 2 workers load this app

                def init(self):
                    self.model = load_10gb_model()

        Note: The config format (``module:Class:N``) takes precedence over
        the class attribute if both are specified.

        Dirty apps are loaded once when the dirty worker starts and persist
        in memory for the lifetime of the worker. This is ideal for loading
        ML models, database connection pools, or other stateful resources
        that are expensive to initialize.

        .. versionadded:: 25.0.0

        .. versionchanged:: 25.1.0
           Added per-app worker allocation via ``:N`` format suffix.

        Default: ``[]``. Command line: ``--dirty-app``.
        """

        dirty_workers: int | Computed[int]
        """The number of dirty worker processes.

        A positive integer. Set to 0 (default) to disable the dirty arbiter.
        When set to a positive value, a dirty arbiter process will be spawned
        to manage the dirty worker pool.

        Dirty workers are separate from HTTP workers and are designed for
        long-running, blocking operations like ML model inference or heavy
        computation.

        .. versionadded:: 25.0.0

        Default: ``0``. Command line: ``--dirty-workers``.
        """

        dirty_timeout: int | Computed[int]
        """Timeout for dirty task execution in seconds.

        Workers silent for more than this many seconds are considered stuck
        and will be killed. Set to a high value for operations like model
        loading that may take a long time.

        Value is a positive number. Setting it to 0 disables timeout checking.

        .. versionadded:: 25.0.0

        Default: ``300``. Command line: ``--dirty-timeout``.
        """

        dirty_threads: int | Computed[int]
        """The number of threads per dirty worker.

        Each dirty worker can use threads to handle concurrent operations
        within the same process, useful for async-safe applications.

        .. versionadded:: 25.0.0

        Default: ``1``. Command line: ``--dirty-threads``.
        """

        dirty_graceful_timeout: int | Computed[int]
        """Timeout for graceful dirty worker shutdown in seconds.

        After receiving a shutdown signal, dirty workers have this much time
        to finish their current tasks. Workers still alive after the timeout
        are force killed.

        .. versionadded:: 25.0.0

        Default: ``30``. Command line: ``--dirty-graceful-timeout``.
        """

        control_socket: str | Computed[str]
        """Unix socket path for control interface.

        The control socket allows runtime management of Gunicorn via the
        ``gunicornc`` command-line tool. Commands include viewing worker
        status, adjusting worker count, and graceful reload/shutdown.

        Default: ``$XDG_RUNTIME_DIR/gunicorn.ctl`` if XDG_RUNTIME_DIR is set,
        otherwise ``$HOME/.gunicorn/gunicorn.ctl``. The parent directory is
        created automatically if needed.

        Use ``--no-control-socket`` to disable.

        .. versionadded:: 25.1.0

        Default: $XDG_RUNTIME_DIR/gunicorn.ctl or $HOME/.gunicorn/gunicorn.ctl. Command line: ``--control-socket``.
        """

        control_socket_mode: int | Computed[int]
        """Permission mode for control socket.

        Restricts who can connect to the control socket. Default ``0600``
        allows only the socket owner. Set to ``0660`` to allow group access.

        .. versionadded:: 25.1.0

        Default: ``384``. Command line: ``--control-socket-mode``.
        """

        control_socket_disable: bool | Computed[bool]
        """Disable control socket.

        When set, no control socket is created and ``gunicornc`` cannot
        connect to this Gunicorn instance.

        .. versionadded:: 25.1.0

        Default: ``False``. Command line: ``--no-control-socket``.
        """

        multiproc_dir: str | None | Computed[str | None]
        """The directory in which the processes of this server share their metrics.

        ``None`` means a private one (mode 0700), in memory if possible. It is handed on at a
        SIGUSR2, and removed when the last process has ended. A directory of your own is created if
        it is missing. A relative path is made absolute before Gunicorn changes directory. The
        environment variable ``PROMETHEUS_MULTIPROC_DIR`` wins over the class.
        """

        metrics_keep: bool | Computed[bool]
        """Whether a start continues from the totals of earlier runs.

        Otherwise a start begins at zero: what earlier runs left in the directory is removed once,
        and only if no process holds a lease there any more. A SIGHUP or SIGUSR2 is not a start in
        this sense, and always keeps the totals. The environment variable ``OBSKIT_METRICS_KEEP``
        wins over the class.
        """

        metrics_bind: str | None | Computed[str | None]
        """Where the exporter listens: ``host:port``, ``[IPv6]:port``, ``unix:path``.

        The exporter is a separate process that serves ``/metrics``, ``/-/healthy`` and
        ``/-/ready``; no worker answers a scrape. ``None`` (in the environment: an empty value)
        means no exporter. If the address is taken, one error line says so, and the exporter keeps
        trying. The environment variable ``OBSKIT_METRICS_BIND`` wins over the class; each option
        that begins with ``metrics_`` has such a variable.
        """

        metrics_path: str | Computed[str]
        """The path at which the exporter serves the exposition."""

        metrics_page: bool | Computed[bool]
        """Whether the exporter shows a live page at ``/``, and its figures at ``/-/status``.

        Both read the directory when somebody asks, and cost nothing otherwise.
        """

        metrics_certfile: str | None | Computed[str | None]
        """A PEM file with the exporter's certificate chain, for TLS; ``None`` for plain HTTP.

        It must exist when Gunicorn starts, and be readable for the workers' user. The next
        connection uses a renewed certificate. A relative path starts from the directory in which
        Gunicorn was started. All this is true for the two files below too.
        """

        metrics_keyfile: str | None | Computed[str | None]
        """A PEM file with the private key, if ``metrics_certfile`` does not contain it."""

        metrics_ca_certs: str | None | Computed[str | None]
        """A PEM file with the authorities whose client certificates are accepted: mutual TLS.

        All other clients are refused.
        """

        metrics_bearer_token_file: str | None | Computed[str | None]
        """A file with a token: whoever asks the exporter must send it.

        That is ``Authorization: Bearer ...``, Prometheus' ``authorization`` with
        ``credentials_file``. Everything but the probes needs it. White space around the token is no
        part of it. A renewed file is used for the next request; while it is gone, empty or damaged,
        nobody is let in. As root, Gunicorn hands the file to an exporter that may not read it, and
        a renewed one at the next SIGHUP. See ``docs/security.md``.
        """

        metrics_auth_file: str | None | Computed[str | None]
        """A file of users: whoever asks the exporter must send a user's name and password.

        Its lines are ``user:hash`` with hashes of bcrypt, as ``htpasswd -B`` writes them. With
        ``metrics_bearer_token_file`` too, either is enough. A token is cheaper to check, and cannot
        be guessed; passwords are for browsers. Needs ``pip install "obskit-gunicorn[auth]"``:
        without it no password is right.
        """

        metrics_auth_probes: bool | Computed[bool]
        """Whether ``/-/healthy`` and ``/-/ready`` need a token or a password too.

        A kubelet asks them without one, so they are open by default; they say only that the
        exporter answers, and whether a worker is ready.
        """

        metrics_collectors: Sequence[str] | Computed[Sequence[str]]
        """Collectors that run once, in the exporter: import strings like ``myapp.metrics:depth``.

        Each names an object with a method ``collect()``, or a class of such objects. Use them for
        what shared metrics cannot express: a callback, the depth of a queue. They
        are imported in the exporter, with the arbiter's ``sys.path``, working directory and
        environment. A collector that raises an exception, or takes longer than two seconds, is left
        out of that scrape and counted in ``obskit_gunicorn_collector_failures_total``. In the
        environment, separate them by commas.
        """

        metrics_max_series: int | Mapping[str, int] | None | Computed[int | Mapping[str, int] | None]
        """How many label sets each metric may have, in the directory: a budget.

        Who comes first has a place, and keeps it until the next generation; what comes later is
        counted with ``__other__`` as the value of all its labels, and nothing is lost. A mapping
        has a number for each metric that it names, and for all others under ``"*"``. Metrics
        without labels need no place. In the environment: ``100,http_requests=1000``.
        """

        metrics_max_bytes: int | None | Computed[int | None]
        """From which size of the metric files on there is no place for more label sets, in bytes.

        Those that have a place keep it, and ``__other__`` needs none.
        """

        metrics_requests: bool | Computed[bool]
        """Whether requests are counted: ``gunicorn_requests_total{method,code}`` and so on.

        Under ASGI workers a wrapper around the application counts them, elsewhere the request hooks
        do. With ``False`` there is neither, and no cost.
        """

        metrics_routes: bool | Computed[bool]
        """Whether requests are counted by route too: ``gunicorn_route_requests_total{route}``.

        A route is the template in the application's code, such as ``/items/{id}``; paths that
        clients ask for are never shown. Known are the routes of Django, Falcon, FastAPI, Flask,
        Starlette and aiohttp; other applications can say them, see docs/metrics.md.
        """

        metrics_buckets: Sequence[float] | Computed[Sequence[float]]
        """Upper bounds of the buckets of ``gunicorn_request_duration_seconds``, in seconds.

        In the environment, separate them by commas.
        """

        metrics_exemplars: bool | Computed[bool]
        """Whether request durations carry the trace of a request as an exemplar.

        Each bucket of ``gunicorn_request_duration_seconds`` then names the last sampled trace that
        fell into it, by ``trace_id`` and ``span_id``, where OpenTelemetry traces the application.
        Only OpenMetrics shows exemplars, and Prometheus keeps them with
        ``--enable-feature=exemplar-storage``. Under WSGI the span is known to a few
        instrumentations only; see docs/metrics.md.
        """

        metrics_standard: bool | Computed[bool]
        """Whether the names that prometheus_client has in one process are shown for the server.

        ``process_cpu_seconds_total`` and others, ``python_info``, ``python_gc_*``: what common
        dashboards ask for. A metric of your own with such a name wins.
        """

        metrics_redis: str | None | Computed[str | None]
        """A Redis or Valkey in which the metrics of many hosts meet: ``redis://host:6379/0``.

        ``rediss://`` is the same over TLS; ``unix:///run/redis.sock`` a socket;
        ``redis+sentinel://one:26379,two:26379/service`` asks sentinels. The exporter publishes what
        this host has counted, and serves what all hosts have at ``metrics_fleet_path``; workers
        know nothing of it. A password comes from ``OBSKIT_METRICS_REDIS_PASSWORD``, or from the
        file that ``OBSKIT_METRICS_REDIS_PASSWORD_FILE`` names. Needs ``pip install
        "obskit-gunicorn[redis]"``. See ``docs/fleet.md``.
        """

        metrics_redis_name: str | Computed[str]
        """The name of the fleet; hosts that publish under one name are added up."""

        metrics_redis_interval: float | Computed[float]
        """How often this host publishes to the store, or pushes, in seconds.

        A host that is killed together with its volume loses at most what it has counted since.
        """

        metrics_host: str | None | Computed[str | None]
        """The name of this host among others, as label ``host``; by default the host name.

        Servers that share a host need a name each.
        """

        metrics_fleet_path: str | Computed[str]
        """The path at which the exporter serves what all hosts have counted."""

        metrics_push: str | None | Computed[str | None]
        """A Prometheus remote-write endpoint to which this host's metrics are pushed.

        For pods that do not live long enough to be scraped:
        ``http://prometheus:9090/api/v1/write``. The exporter pushes every
        ``metrics_redis_interval`` seconds, and once more at its end. A bearer token comes from
        ``OBSKIT_METRICS_PUSH_TOKEN``, a user from ``OBSKIT_METRICS_PUSH_USER`` and
        ``OBSKIT_METRICS_PUSH_PASSWORD``, or each from the file that the variable with ``_FILE``
        behind it names. Needs ``pip install "obskit-gunicorn[push]"``. See ``docs/fleet.md``.
        """
